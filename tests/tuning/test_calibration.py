"""What calibration collects, against transformers; what it warns of, refuses and leaves."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from transformers import GptOssForCausalLM

from gptoss_onnx.cli import main
from gptoss_onnx.export.checkpoint import Checkpoint, open_checkpoint
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.graph_passes.rounding import Statistics
from gptoss_onnx.tuning.calibration import calibrated, read_calibration

pytestmark = pytest.mark.slow

Float = NDArray[np.float32]
LAYERS, EXPERTS = 3, 4
TEXTS = ["def join(path, *paths):\n    return path\n" * 3, "Where is the nearest station? " * 9]
# Two float32 sums over some hundred tokens in different orders, through three layers.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("calibration") / "tiny"
    made = synthesize(
        folder, geometry="tiny", layers=LAYERS, experts=EXPERTS, vocab=4096, tokenizer=demo
    )
    return open_checkpoint(made)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def collected(checkpoint: Checkpoint, text: Path) -> Statistics:
    with calibrated(text, checkpoint, grams=True, progress=lambda *_: None) as made:
        return made.statistics


@pytest.fixture(scope="module")
def inputs(checkpoint: Checkpoint, text: Path) -> dict[str, Float]:
    """By transformers: what went into each weight [n, K], keys and values [T, kv_heads, D]."""
    model = GptOssForCausalLM.from_pretrained(
        checkpoint.place, dtype=torch.float32, attn_implementation="eager"
    )
    model = model.float().eval()
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            seen.setdefault(name, []).append(given[0].reshape(-1, given[0].shape[-1]))

        return hook

    for layer, module in enumerate(model.model.layers):
        prefix = f"model.layers.{layer}"
        module.self_attn.q_proj.register_forward_pre_hook(keep(f"{prefix}.self_attn.qkv_proj"))
        module.self_attn.o_proj.register_forward_pre_hook(keep(f"{prefix}.self_attn.o_proj"))
        module.mlp.register_forward_pre_hook(keep(f"{prefix}.mlp"))
    model.lm_head.register_forward_pre_hook(keep("lm_head"))
    with torch.no_grad():
        for passage in read_calibration(text, checkpoint):
            cache = model(torch.tensor([passage.ids]), use_cache=True).past_key_values
            for layer, kept in enumerate(cache.layers):
                for part, value in (("key", kept.keys), ("value", kept.values)):
                    seen.setdefault(f"{layer}.{part}", []).append(value[0].transpose(0, 1))
        _experts(model, seen)
    return {name: torch.cat(parts).numpy() for name, parts in seen.items()}


def _experts(model: GptOssForCausalLM, seen: dict[str, list[torch.Tensor]]) -> None:
    """What goes into each expert, one token after the other."""
    for layer, module in enumerate(model.model.layers):
        x = torch.cat(seen.pop(f"model.layers.{layer}.mlp"))
        router, experts = module.mlp.router, module.mlp.experts
        chosen = (x @ router.weight.T + router.bias).topk(router.top_k, dim=-1).indices
        for expert in range(EXPERTS):
            mine = x[(chosen == expert).any(-1)]
            both = mine @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
            gate, up = both[:, ::2].clamp(max=7), both[:, 1::2].clamp(-7, 7)
            name = f"model.layers.{layer}.mlp.experts"
            seen[f"{name}.gate_up_proj.{expert}"] = [mine]
            seen[f"{name}.down_proj.{expert}"] = [(up + 1) * gate * torch.sigmoid(1.702 * gate)]


def close(ours: Float, expected: Float) -> bool:
    return bool(np.abs(ours - expected).max() <= CLOSE * np.abs(expected).max())


def test_statistics_are_those_of_the_modules_inputs(
    collected: Statistics, inputs: dict[str, Float]
) -> None:
    checked = 0
    for name, moments in collected.moments.items():
        experts = (
            [(f"{name}.{e}", e) for e in range(EXPERTS)] if moments.ndim == 2 else [(name, ...)]
        )
        for key, place in experts:
            x = inputs[key]
            assert collected.counts[name][place] == len(x), key
            assert close(moments[place], (x * x).sum(0)), key
            assert close(collected.grams[name][place], x.T @ x), key
            # The canaries: other channels, another expert's or another layer's would be seen.
            assert not close(np.roll(moments[place], 1), (x * x).sum(0)), key
            checked += 1
    assert checked == LAYERS * (2 + 2 * EXPERTS) + 1
    for name, shared in collected.shared.items():
        assert close(shared, collected.grams[name].sum(0)), name
    assert len(collected.shared) == 2 * LAYERS


def test_largest_keys_and_values(collected: Statistics, checkpoint: Checkpoint) -> None:
    spec = checkpoint.spec
    shapes = {key: most.shape for key, most in collected.kv_max.items()}
    names = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    assert shapes == dict.fromkeys(names, (spec.num_kv_heads, spec.head_dim))


def test_largest_values_of_layers_that_keep_all(
    collected: Statistics, inputs: dict[str, Float], checkpoint: Checkpoint
) -> None:
    for layer in range(LAYERS):
        if checkpoint.spec.attention[layer].window:
            continue  # transformers' cache has dropped the first tokens
        for part in ("key", "value"):
            expected = np.abs(inputs[f"{layer}.{part}"]).max(0)
            assert close(collected.kv_max[f"{layer}.{part}"], expected)


def test_experts_wait_for_a_batch_and_grams_may_lie_in_files(
    checkpoint: Checkpoint, text: Path, collected: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptoss_onnx.tuning.calibration._FLUSH", 50)
    monkeypatch.setattr("gptoss_onnx.tuning.calibration._IN_MEMORY", 0)
    with calibrated(text, checkpoint, grams=True, progress=lambda *_: None) as made:
        for name, gram in collected.grams.items():
            assert isinstance(made.statistics.grams[name], np.memmap)
            assert close(made.statistics.grams[name], gram), name
            assert (made.statistics.counts[name] == collected.counts[name]).all()


def test_no_more_than_most_tokens(
    checkpoint: Checkpoint, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptoss_onnx.tuning.calibration.MOST_TOKENS", 10)
    with calibrated(text, checkpoint, grams=False, progress=lambda *_: None) as made:
        first = len(read_calibration(text, checkpoint)[0].ids)
        assert made.described["tokens"] == made.statistics.counts["lm_head"] == first
        assert made.statistics.grams == {}


def export(checkpoint: Checkpoint, output: Path, *arguments: object) -> Result:
    words = ["export", checkpoint.place, "--output", output, *arguments]
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """Where temporary folders go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def leftovers(scratch: Path, cache: Path) -> list[str]:
    return [*os.listdir(scratch), *(n for n in os.listdir(cache) if n.startswith("."))]


@pytest.mark.parametrize("method", [None, "search"])
def test_the_manifest_says_method_and_text(
    checkpoint: Checkpoint,
    text: Path,
    tmp_path: Path,
    scratch: Path,
    cache: Path,
    method: str | None,
) -> None:
    chosen = ["--method", method] if method else []
    result = export(checkpoint, tmp_path / "package", "--calibrate", text, *chosen)
    assert result.exit_code == 0, result.output
    said = json.loads((tmp_path / "package" / "manifest.json").read_text())["rounding"]
    tokens = sum(len(passage.ids) for passage in read_calibration(text, checkpoint))
    assert said["method"] == (method or "gptq")
    assert (said["calibration"]["text"], said["calibration"]["tokens"]) == (text.name, tokens)
    assert len(said["calibration"]["sha256"]) == 64
    assert leftovers(scratch, cache) == []


def test_experts_without_tokens_are_counted(
    checkpoint: Checkpoint, tmp_path: Path, scratch: Path
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("a b")
    result = export(checkpoint, tmp_path / "package", "--calibrate", few)
    assert result.exit_code == 0, result.output
    (line,) = [row for row in result.stderr.splitlines() if "routes nothing" in row]
    with calibrated(few, checkpoint, grams=False, progress=lambda *_: None) as made:
        unrouted, experts = made.statistics.unrouted
    assert 0 < unrouted < experts == LAYERS * EXPERTS
    assert f"few.txt routes nothing to {unrouted} of 12 experts" in line


def test_gptq_asks_for_a_text(checkpoint: Checkpoint, tmp_path: Path) -> None:
    result = export(checkpoint, tmp_path / "package", "--method", "gptq")
    assert result.exit_code == 1 and "give --calibrate FILE" in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("wrong", ["missing.jsonl", "empty.txt"])
def test_a_text_that_cannot_be_used(
    checkpoint: Checkpoint, tmp_path: Path, scratch: Path, cache: Path, wrong: str
) -> None:
    (tmp_path / "empty.txt").write_text("")
    result = export(checkpoint, tmp_path / "package", "--calibrate", tmp_path / wrong)
    assert result.exit_code == 1 and wrong in result.stderr
    assert not (tmp_path / "package").exists()
    assert leftovers(scratch, cache) == []


def test_no_room_for_gptqs_statistics(
    checkpoint: Checkpoint,
    text: Path,
    tmp_path: Path,
    scratch: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gptoss_onnx.tuning.calibration._IN_MEMORY", 0)
    monkeypatch.setattr(
        "gptoss_onnx.tuning.calibration.shutil.disk_usage",
        lambda _: type("Usage", (), {"free": 1000}),
    )
    result = export(checkpoint, tmp_path / "package", "--calibrate", text)
    assert result.exit_code == 1 and "set TMPDIR to a larger disk" in result.stderr
    assert leftovers(scratch, cache) == []


def test_an_interrupted_calibration_leaves_nothing(
    checkpoint: Checkpoint, text: Path, tmp_path: Path, scratch: Path, cache: Path
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        assert leftovers(scratch, cache)  # it is at work
        raise KeyboardInterrupt

    context = calibrated(text, checkpoint, grams=True, progress=interrupt)
    with pytest.raises(KeyboardInterrupt), context:
        pass
    assert leftovers(scratch, cache) == []
