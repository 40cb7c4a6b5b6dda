"""Random checkpoints load in transformers, behave like a model, and are written whole or not."""

from __future__ import annotations

import errno
import json
import math
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GptOssForCausalLM

from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.experts import DenseExperts, Mxfp4Experts
from gptoss_onnx.export.safetensors_folder import INDEX_FILE, SINGLE_FILE
from gptoss_onnx.export.synthetic import GEOMETRIES, synthesize
from gptoss_onnx.runtimes.errors import UserError

# The published geometries' vocabulary with little else, for what depends on ids.
SMALL = {
    "layers": 2,
    "experts": 2,
    "experts_per_token": 1,
    "hidden": 32,
    "intermediate": 32,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 32,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices of 64 x 64: a second thread only waits, for seconds where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(folder: Path) -> GptOssForCausalLM:
    """The checkpoint in transformers, which unpacks MXFP4 where there is no GPU."""
    model, info = GptOssForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info  # nothing missing, left over or of another shape
    return model.float().eval()


@torch.no_grad()
def logits(model: GptOssForCausalLM, length: int = 96) -> torch.Tensor:
    ids = torch.randint(model.config.vocab_size, (2, length), generator=torch.manual_seed(1))
    return model(ids).logits


def values(folder: Path, layer: int, which: Any, expert: int) -> np.ndarray[Any, Any]:
    """An expert's weight [N, K] by this test's own reading of the format."""
    weight = open_checkpoint(folder).expert_weight(layer, which)
    if isinstance(weight, DenseExperts):
        return weight.read(expert)
    blocks, scales = weight.read(expert)
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    table = np.array(magnitudes + [-m for m in magnitudes], np.float32)
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(*scales.shape, 32)
    decoded = np.ldexp(table[codes], scales.astype(np.int32)[..., None] - 127)
    return decoded.reshape(len(blocks), -1)


@pytest.mark.parametrize("kind", ["packed", "dense", "sharded"])
def test_loads_in_transformers_and_behaves(kind: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(kind))
    chosen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.router.register_forward_hook(lambda _m, _i, out: chosen.append(out[1]))
    found = logits(model)
    assert found.isfinite().all()
    assert 1 < found.std() < 4
    _, counts = found.argmax(-1).unique(return_counts=True)
    assert counts.max() < 0.15 * counts.sum()
    assert len(counts) > 50
    for experts in chosen:
        assert torch.bincount(experts.flatten(), minlength=4).min() > 0.1 * experts.numel()


def test_activations_stay_sane_over_24_layers(tmp_path: Path) -> None:
    folder = synthesize(
        tmp_path / "deep", geometry="tiny", format="bf16", layers=24, experts=8, vocab=2048
    )
    model = load(folder)
    norms: list[float] = []
    for layer in model.model.layers:
        layer.register_forward_hook(
            lambda _m, _i, out: norms.append((out[0] if isinstance(out, tuple) else out).std())
        )
    found = logits(model)
    assert 1 < found.std() < 4
    assert min(norms) > 0.5
    assert max(norms) < 8
    _, counts = found.argmax(-1).unique(return_counts=True)
    assert counts.max() < 0.15 * counts.sum()


@pytest.mark.parametrize("part", ["sinks", "q_proj.bias", "k_proj.bias", "v_proj.bias"])
@pytest.mark.parametrize("layer", [0, 1])
def test_lost_attention_part_shows(dense: Path, part: str, layer: int) -> None:
    name = f"model.layers.{layer}.self_attn.{part}"
    assert_shows(dense, lambda model: model.get_parameter(name).data.zero_())


@pytest.mark.parametrize(
    "name",
    [
        "self_attn.o_proj.bias",
        "mlp.router.bias",
        "mlp.experts.gate_up_proj_bias",
        "mlp.experts.down_proj_bias",
    ],
)
def test_lost_bias_shows(dense: Path, name: str) -> None:
    name = f"model.layers.0.{name}"
    assert_shows(dense, lambda model: model.get_parameter(name).data.zero_())


@pytest.mark.parametrize("layer", [0, 1])
def test_softmax_without_sinks_shows(dense: Path, layer: int) -> None:
    name = f"model.layers.{layer}.self_attn.sinks"
    assert_shows(dense, lambda model: model.get_parameter(name).data.fill_(-1e4))


def test_lost_window_shows(dense: Path) -> None:
    assert_shows(dense, lambda model: setattr(model.config, "sliding_window", 4096))


def assert_shows(folder: Path, damage: Callable[[GptOssForCausalLM], object]) -> None:
    """The damage moves the next-token distribution well beyond what rounding does."""
    model = load(folder)
    before = logits(model).log_softmax(-1)
    damage(model)
    after = logits(model).log_softmax(-1)
    divergence = (before.exp() * (before - after)).sum(-1).mean()
    assert divergence > 1e-3


@pytest.mark.parametrize("format", ["mxfp4", "bf16"])
def test_expert_statistics(tmp_path: Path, format: Any) -> None:
    folder = synthesize(
        tmp_path / "a", geometry="tiny", format=format, hidden=256, intermediate=96, layers=1
    )
    for which, columns in (("gate_up_proj", 256), ("down_proj", 96)):
        experts = [values(folder, 0, which, expert) for expert in range(4)]
        for number, expert in enumerate(experts):
            assert expert.shape[1] == columns
            assert abs(expert.std() * math.sqrt(columns) - 1) < 0.05
            assert abs(expert.mean()) < 0.05 * expert.std()
            kurtosis = np.mean((expert / expert.std()) ** 4)
            assert 2.7 < kurtosis < 3.3  # a Gaussian's is 3, uniform codes' would be about 2
            for other in experts[:number]:
                assert abs(np.corrcoef(expert.ravel(), other.ravel())[0, 1]) < 0.05


def test_codes_and_scales_are_a_quantizers(packed: Path) -> None:
    weight = open_checkpoint(packed).expert_weight(0, "gate_up_proj")
    assert isinstance(weight, Mxfp4Experts)
    blocks = np.concatenate([weight.read(expert)[0] for expert in range(4)])
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(-1, 32)
    assert set(np.unique(codes)) == set(range(16))
    # The scale fits its block: the largest magnitude is one of the three top codes, 3 only by a
    # rounding that the standard does not do.
    assert ((codes & 7).max(axis=1) >= 6).all()


def test_deterministic(tmp_path: Path, packed: Path, dense: Path) -> None:
    for format, first in (("mxfp4", packed), ("bf16", dense)):
        again = synthesize(tmp_path / format, geometry="tiny", format=format)  # type: ignore[arg-type]
        names = sorted(file.name for file in first.iterdir())
        assert names == sorted(file.name for file in again.iterdir())
        for name in names:
            assert (first / name).read_bytes() == (again / name).read_bytes()
    other = load_file(synthesize(tmp_path / "other", geometry="tiny", seed=1) / SINGLE_FILE)
    for name, tensor in load_file(packed / SINGLE_FILE).items():
        assert not torch.equal(tensor, other[name])


def test_shards_hold_the_same_tensors(packed: Path, sharded: Path) -> None:
    listed = json.loads((sharded / INDEX_FILE).read_text())
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) >= 3
    assert [file.name for file in files] == [
        f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))
    ]
    whole = load_file(packed / SINGLE_FILE)
    assert listed["weight_map"].keys() == whole.keys()
    assert listed["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert not (sharded / SINGLE_FILE).exists()
    for file in files:
        assert file.stat().st_size < 110_000
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, whole.pop(name))
    assert not whole


def test_config_is_the_published(tmp_path: Path) -> None:
    folder = synthesize(tmp_path / "a", geometry="gpt-oss-20b", **SMALL)  # type: ignore[arg-type]
    config = json.loads((folder / "config.json").read_text())
    assert config["eos_token_id"] == 200002
    assert config["pad_token_id"] == 199999
    assert config["quantization_config"] == {
        "modules_to_not_convert": [
            *("model.layers.*.self_attn", "model.layers.*.mlp.router"),
            *("model.embed_tokens", "lm_head"),
        ],
        "quant_method": "mxfp4",
    }
    assert config["rope_scaling"] == {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    }
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [200002, 199999, 200012]
    spec = open_checkpoint(folder).spec
    assert (spec.vocab_size, spec.attention[0].window, spec.rope.factor) == (201088, 128, 32)
    assert spec.max_position_embeddings == 131072


@pytest.mark.parametrize("vocab", [None, 4])
def test_ids_lie_in_the_vocabulary(tmp_path: Path, vocab: int | None) -> None:
    folder = synthesize(tmp_path / "a", geometry="tiny", vocab=vocab)
    spec = open_checkpoint(folder).spec
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    ids = [config["eos_token_id"], config["pad_token_id"], *generation["eos_token_id"]]
    assert all(0 <= i < spec.vocab_size for i in [*ids, generation["bos_token_id"]])
    assert spec.rope.original_max_position * 32 == spec.max_position_embeddings == 4096


def test_every_size_can_be_chosen(tmp_path: Path) -> None:
    sizes = {**SMALL, "vocab": 300, "sliding_window": 7}
    folder = synthesize(tmp_path / "a", geometry="gpt-oss-120b", **sizes)  # type: ignore[arg-type]
    spec = open_checkpoint(folder).spec
    assert (spec.num_layers, spec.num_experts, spec.experts_per_token) == (2, 2, 1)
    assert (spec.hidden_size, spec.intermediate_size, spec.head_dim) == (32, 32, 32)
    assert (spec.num_heads, spec.num_kv_heads) == (2, 1)
    assert (spec.vocab_size, spec.attention[0].window) == (300, 7)


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir()
    special = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|call|>"]
    content = {
        "model": {"vocab": {"a": 0, "b": 1}},
        "added_tokens": [{"content": token, "id": i + 2} for i, token in enumerate(special)],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_tokenizer_is_copied_and_gives_the_ids(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    folder = synthesize(tmp_path / "a", geometry="tiny", tokenizer=tokenizer)
    for file in tokenizer.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (4, 3)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [4, 3, 5]


def refusal(folder: Path, **arguments: Any) -> str:
    """The one-line message; nothing is left beside what was there."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(UserError) as caught:
        synthesize(folder, **{"geometry": "tiny", **arguments})
    message = str(caught.value)
    assert "\n" not in message
    assert sorted(folder.parent.iterdir()) == before
    return message


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"geometry": "gpt-oss-7b"}, ("gpt-oss-7b", "gpt-oss-20b", "tiny")),
        ({"format": "gguf"}, ("gguf", "mxfp4", "bf16")),
        ({"hidden": 48}, ("48", "multiples of 32", "bf16")),
        ({"intermediate": 80}, ("80", "multiples of 32", "bf16")),
        ({"layers": 0}, ("num_hidden_layers", "from 1 on")),
        ({"experts": 1}, ("num_experts_per_tok", "num_local_experts")),
        ({"kv_heads": 3}, ("num_key_value_heads",)),
    ],
    ids=str,
)
def test_wrong_arguments(tmp_path: Path, arguments: Any, names: tuple[str, ...]) -> None:
    message = refusal(tmp_path / "a", **arguments)
    assert all(name in message for name in names), message


def test_wrong_tokenizer(tmp_path: Path) -> None:
    assert "harmony tokenizer" in refusal(tmp_path / "a", tokenizer=tmp_path)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    message = refusal(tmp_path / "a", tokenizer=tokenizer, vocab=5)
    assert "tokenizer.json: ids up to 5; raise" in message


def test_existing_folder_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    assert "exists already" in refusal(folder)
    assert not list(folder.iterdir())


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(done: int, total: int) -> None:
        if done > total // 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    assert "the disk is full" in refusal(tmp_path / "a", progress=full)
    little = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: little)
    assert "the disk is full" in refusal(tmp_path / "a", progress=pytest.fail)


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        synthesize(tmp_path / "file" / "a", geometry="tiny")


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "a", geometry="tiny", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_streams(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tracemalloc.start()
    folder = synthesize(
        tmp_path / "a",
        geometry="gpt-oss-20b",
        **{**SMALL, "hidden": 256},  # type: ignore[arg-type]
        progress=lambda done, total: seen.append((done, total)),
    )
    _, peak = tracemalloc.get_traced_memory()
    assert peak < 100e6  # of 207 MB: three pools and their source, one piece and its offsets
    tracemalloc.reset_peak()
    base, _ = tracemalloc.get_traced_memory()
    checkpoint = open_checkpoint(folder)
    assert tracemalloc.get_traced_memory()[1] - base < 2e6
    checkpoint.tensors["lm_head.weight"].read(0, 1000)
    assert tracemalloc.get_traced_memory()[1] - base < 4e6
    tracemalloc.stop()
    total = sum(view.nbytes for view in checkpoint.tensors.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_geometries_are_the_published() -> None:
    small, large = GEOMETRIES["gpt-oss-20b"], GEOMETRIES["gpt-oss-120b"]
    assert (small["layers"], small["experts"]) == (24, 32)
    assert (large["layers"], large["experts"]) == (36, 128)
    for sizes in (small, large):
        assert sizes["hidden"] == sizes["intermediate"] == 2880
        assert (sizes["heads"], sizes["kv_heads"], sizes["head_dim"]) == (64, 8, 64)
        assert (sizes["experts_per_token"], sizes["sliding_window"]) == (4, 128)
        assert sizes["max_position"] == 131072
