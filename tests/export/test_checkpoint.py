"""What is wrong with a checkpoint is said in one line; what is right reads as safetensors does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open
from safetensors.torch import load_file

from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.experts import DenseExperts, Mxfp4Experts
from gptoss_onnx.export.safetensors_folder import INDEX_FILE, SINGLE_FILE
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.runtimes.errors import UserError
from tests.export.damage import (
    SHARDED_CASES,
    SINGLE_CASES,
    UP,
    Damage,
    config,
    edit_tensors,
    shards,
)

Copy = Callable[[Path], Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refusal(source: str | Path, revision: str | None = None) -> str:
    """The message of the refusal: one line, what is wrong; what to do."""
    with pytest.raises(UserError) as caught:
        open_checkpoint(source, revision)
    message = str(caught.value)
    assert "\n" not in message
    wrong, _, remedy = message.rpartition("; ")
    assert wrong, message
    assert remedy, message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(("damage", "names"), SINGLE_CASES.values(), ids=SINGLE_CASES.keys())
def test_damaged_checkpoint_is_refused(
    packed: Path, copy: Copy, damage: Damage, names: tuple[str, ...]
) -> None:
    folder = copy(packed)
    open_checkpoint(folder)
    damage(folder)
    message = refusal(folder)
    assert all(name in message for name in names), message


@pytest.mark.parametrize(("damage", "names"), SHARDED_CASES.values(), ids=SHARDED_CASES.keys())
def test_damaged_shards_are_refused(
    sharded: Path, copy: Copy, damage: Damage, names: tuple[str, ...]
) -> None:
    folder = copy(sharded)
    open_checkpoint(folder)
    damage(folder)
    message = refusal(folder)
    assert all(name in message for name in names), message


def test_no_such_folder_file_or_revision(packed: Path) -> None:
    assert "no such folder" in refusal("/nowhere/at/all")
    assert "is a file" in refusal(packed / "config.json")
    assert "revision 'main'" in refusal(packed, "main")


def test_attributes(packed: Path, dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed.parent)
    checkpoint = open_checkpoint("tiny")
    assert (checkpoint.place, checkpoint.name, checkpoint.revision) == (str(packed), "tiny", None)
    assert checkpoint.spec.vocab_size == checkpoint.config["vocab_size"] == 512
    assert checkpoint.expert_format == "mxfp4"
    assert open_checkpoint(dense).expert_format == "dense"
    monkeypatch.chdir(packed)
    assert open_checkpoint(".").name == "tiny"


def save_as(folder: Path, dtype: torch.dtype) -> None:
    edit_tensors(folder, lambda found: found.update({k: v.to(dtype) for k, v in found.items()}))


@pytest.mark.parametrize("kind", ["packed", "dense", "sharded", "float16", "float32"])
def test_reads_what_safetensors_reads(
    kind: str, copy: Copy, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind if not kind.startswith("float") else "dense")
    if kind.startswith("float"):
        folder = copy(folder)
        save_as(folder, getattr(torch, kind))
    checkpoint = open_checkpoint(folder)
    seen = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as theirs:
            for name in theirs.keys():  # noqa: SIM118, a handle is no mapping
                seen += 1
                view, expected = checkpoint.tensors[name], theirs.get_tensor(name)
                assert view.shape == tuple(expected.shape)
                assert view.nbytes == expected.nbytes
                raw_bytes = expected.contiguous().view(torch.uint8).numpy().tobytes()
                assert view.read().tobytes() == raw_bytes
                assert b"".join(chunk.tobytes() for chunk in view.chunks(1000)) == raw_bytes
                assert max(chunk.size for chunk in view.chunks(1000)) <= 1000
                assert view.file.read_bytes()[view.offset :][: view.nbytes] == raw_bytes
                numbers = view.read().astype(np.float64)
                np.testing.assert_array_equal(numbers, expected.double().numpy())
                for start, stop in ((0, 1), (1, 3), (2, None), (3, 3)):
                    np.testing.assert_array_equal(
                        view.read(start, stop).astype(np.float64), numbers[start:stop]
                    )
    assert seen == len(checkpoint.tensors)


def test_reads_only_the_rows_asked_for(packed: Path, copy: Copy) -> None:
    folder = copy(packed)
    view = open_checkpoint(folder).tensors[f"{UP}_blocks"]
    row = view.nbytes // view.shape[0]
    first = view.read(0, 1)
    os.truncate(view.file, view.offset + row)
    np.testing.assert_array_equal(view.read(0, 1), first)
    for read in (lambda: view.read(1, 2), lambda: list(view.chunks())):
        with pytest.raises(UserError, match=r"cannot read .*gate_up_proj_blocks.*; "):
            read()
    view.file.unlink()
    with pytest.raises(UserError, match="No such file"):
        view.read(0, 1)


def test_packed_experts(packed: Path) -> None:
    found = load_file(packed / SINGLE_FILE)
    for which, shape in (("gate_up_proj", (4, 128, 64)), ("down_proj", (4, 64, 64))):
        weight = open_checkpoint(packed).expert_weight(1, which)  # type: ignore[arg-type]
        assert isinstance(weight, Mxfp4Experts)
        assert weight.shape == shape
        for expert in range(4):
            for part, name in zip(weight.read(expert), ("blocks", "scales"), strict=True):
                expected = found[f"model.layers.1.mlp.experts.{which}_{name}"][expert]
                np.testing.assert_array_equal(part, expected.numpy())


def test_dense_experts_are_transposed(tmp_path: Path) -> None:
    folder = synthesize(tmp_path / "a", geometry="tiny", format="bf16", intermediate=96)
    found = load_file(folder / SINGLE_FILE)
    for which, shape in (("gate_up_proj", (4, 192, 64)), ("down_proj", (4, 64, 96))):
        weight = open_checkpoint(folder).expert_weight(1, which)  # type: ignore[arg-type]
        assert isinstance(weight, DenseExperts)
        assert weight.shape == shape
        for expert in range(4):
            values = weight.read(expert)
            assert values.dtype == np.float32
            assert values.flags.c_contiguous
            expected = found[f"model.layers.1.mlp.experts.{which}"][expert].float().T
            np.testing.assert_array_equal(values, expected.numpy())


def test_buffers_are_ignored(packed: Path, copy: Copy) -> None:
    folder = copy(packed)
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(folder, lambda found: found.update({buffer: torch.ones(16)}))
    assert buffer not in open_checkpoint(folder).tensors


def test_tied_embeddings_need_no_head(packed: Path, copy: Copy) -> None:
    folder = copy(packed)
    edit_tensors(folder, lambda found: found.pop("lm_head.weight"))
    assert "lm_head.weight" in refusal(folder)
    config(tie_word_embeddings=True)(folder)
    assert "lm_head.weight" not in open_checkpoint(folder).tensors


def hub_cache(home: Path, source: Path) -> Path:
    """The cache as the hub client leaves it: names link to blobs."""
    repository = home / "hub" / "models--acme--small"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.copyfile(file, repository / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


def test_hub_id_offline(sharded: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, sharded)
    # In a process of its own: the hub client reads its environment when it is imported.
    script = """if True:
        from gptoss_onnx.export.checkpoint import open_checkpoint
        from gptoss_onnx.runtimes.errors import UserError
        found = open_checkpoint("acme/small")
        print(found.place, found.name, found.revision)
        try:
            open_checkpoint("acme/other")
        except UserError as error:
            print(error)
    """
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    out = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert out[0] == f"{snapshot} small {COMMIT}"
    assert len(out) == 2
    assert "acme/other" in out[1]
    assert "HF_HUB_OFFLINE" in out[1]


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (errors.RevisionNotFoundError("404\nid", response=Mock()), ("'v9'", "branch")),
        (errors.RepositoryNotFoundError("401\nid", response=Mock()), ("hf auth login",)),
        (errors.GatedRepoError("403\nid", response=Mock()), ("hf auth login",)),
        (errors.LocalEntryNotFoundError("no\nnet"), ("cannot be reached", "folder")),
        (errors.HfHubHTTPError("500 Server\nError", response=Mock()), ("500 Server", "again")),
        (OSError("No space left\non device"), ("No space left", "disk")),
        (TimeoutError(), ("TimeoutError", "connection")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hub_errors(
    error: Exception, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=error))
    message = refusal("acme/none", "v9")
    assert all(name in message for name in ("acme/none", *names)), message


def test_hub_download_takes_what_an_export_reads(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = Mock(return_value=str(hub_cache(tmp_path, sharded)))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_checkpoint("acme/small", "v1").revision == COMMIT
    (repository,), options = download.call_args
    assert (repository, options.pop("revision")) == ("acme/small", "v1")
    wanted = [
        *("LICENSE", "USAGE_POLICY", "chat_template.jinja", "config.json", "tokenizer.json"),
        *("generation_config.json", "model-00000-of-00002.safetensors", INDEX_FILE),
    ]
    # The published repositories hold the weights twice more.
    others = [
        *("original/model.safetensors", "original/config.json", "metal/model.bin"),
        *("pytorch_model.bin", "README.md", ".gitattributes", "model.py"),
    ]
    assert list(filter_repo_objects([*wanted, *others], **options)) == wanted


def test_cached_snapshot_opens_as_a_folder_and_no_further(sharded: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, sharded)
    open_checkpoint(snapshot)
    shard = shards(snapshot)[0]
    shard.rename(tmp_path / "hub" / "models--acme--small" / "stray")
    shard.symlink_to("../../stray")
    assert "links out" in refusal(snapshot)
