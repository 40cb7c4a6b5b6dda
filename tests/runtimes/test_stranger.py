"""A package from a stranger: whatever its JSON files say, one line or a success.

Every field is absent once, and once each of the values below; nothing but a UserError may come of
it, no file may be written, and none outside the package opened.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gptoss_onnx.cli import main
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation import Options, generate
from gptoss_onnx.runtimes.manifest import MANIFEST
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session
from tests.conftest import seal

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("keep_sigterm")]
Place = tuple[str | int, ...]
ABSENT = object()
NESTED: Any = [[[[{"a": [{}]}]]]] * 3
for _ in range(200):
    NESTED = [NESTED]
ODD = (
    *(ABSENT, None, True, False, -1, 0, 1, 3, 2**24, 2**31, 2**62, -(10**400), 0.5, 1e300, -1e-300),
    *(float("nan"), float("inf"), "", "x", "1", "a\nb", "\x00", "../secret", "sub/../../secret"),
    *("%2e%2e/secret", "..\\secret", "https://example.org/x", [], [None], {}, {"a": {}}, NESTED),
)
CONFIG = {
    "model_type": "gpt_oss", "num_hidden_layers": 3, "vocab_size": 272, "eos_token_id": 258,
    "rope_scaling": {"factor": 32.0}, "layer_types": ["sliding_attention"],
}  # fmt: skip
GENERATION = {
    "eos_token_id": [258, 264], "do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9,
    "min_p": 0.01, "repetition_penalty": 1.1, "pad_token_id": 257,
}  # fmt: skip

# What this process opens, while somebody asks. A hook cannot be taken away again.
_opened: list[tuple[str, bool]] | None = None
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate", "os.rmdir")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is None:
        return
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.append((os.path.realpath(os.fsdecode(arguments[0])), bool(arguments[2] & WRITES)))
    elif event in CHANGES or event in ("subprocess.Popen", "socket.connect"):
        _opened.append((f"{event} {arguments}", True))


sys.addaudithook(_hook)


@contextmanager
def watched() -> Iterator[list[tuple[str, bool]]]:
    global _opened
    _opened = found = []
    try:
        yield found
    finally:
        _opened = None


@pytest.fixture
def package(package_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(package_folder, tmp_path / "outside" / "package"))
    (folder.parent / "secret").write_text("{}")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    content = json.loads((folder / MANIFEST).read_text())
    general = {n: v for n, v in content.items() if n not in ("format", "files")}
    general |= {
        "recipe": {"experts": "int4:32"}, "weights": {"experts": 1}, "links": ["config.json"],
        "requires": [], "padded_batches": True, "activations": "float32", "source": {"name": "s"},
        "rounding": {"method": "search"}, "versions": {"onnx": "1"},
    }  # fmt: skip
    graph = {n: general[n] for n in ("target", "min_runtime", "graph", "logits", "kv", "session")}
    return seal(folder, {**general, "graphs": [graph]})


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Of every value below, those of a long object's or list's first members alone."""
    if at:
        yield at
    if isinstance(value, dict | list):
        names = list(value) if isinstance(value, dict) else range(len(value))
        for name in islice(names, 20):
            yield from places(value[name], (*at, name))


def changed(content: Any, at: Place, value: Any) -> Any:
    content = copy.deepcopy(content)
    place = content
    for name in at[:-1]:
        place = place[name]
    if value is ABSENT:
        del place[at[-1]]
    else:
        place[at[-1]] = value
    return content


def changes(folder: Path, name: str) -> Iterator[Any]:
    """The package's file of that name, changed at one place, once for each change there is."""
    file, manifest = folder / name, json.loads((folder / MANIFEST).read_text())
    content = json.loads(file.read_text())
    texts = [
        *(json.dumps(changed(content, at, v)) for at in places(content) for v in ODD),
        *("", "{", "[]", "null", "1", '"x"', "\ufeff{}", "[" * 100_000, '{"a":' * 100_000, "{}"),
    ]
    for text in texts:
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        if name != MANIFEST:
            manifest["files"][name]["size"] = file.stat().st_size
            (folder / MANIFEST).write_text(json.dumps(manifest))
        yield text[:2000]


def check(folder: Path, act: Callable[[], str | None], what: str) -> None:
    """`act` gives the line it refuses with, and has touched nothing."""
    outside = folder.parent
    before = sorted(map(str, outside.rglob("*")))
    with watched() as opened:
        said = act()
    assert said is None or len(said.splitlines()) == 1, (said, what)
    assert sorted(map(str, outside.rglob("*"))) == before, what
    for path, written in opened:
        assert not written or path == os.devnull, (path, what)
        assert path != str((outside / "secret").resolve()), what


def use(folder: Path) -> str | None:
    """All that an application does with a package."""
    try:
        opened = Package.open(folder)
        ids = opened.tokenizer.encode("What does os.path.join do?")
        options = Options(max_new_tokens=2, sampling=opened.sampling)
        reply = list(generate(Session(opened), ids or [1], options))
        opened.tokenizer.decode(reply)
    except UserError as error:
        return str(error)
    return None


FILES = [MANIFEST, "config.json", "generation_config.json", "tokenizer.json"]


@pytest.mark.parametrize("name", FILES)
def test_any_field_changed_is_one_line_or_nothing(package: Path, name: str) -> None:
    count = 0
    for text in changes(package, name):
        check(package, partial(use, package), text)
        count += 1
    assert count > 200


@pytest.mark.parametrize("name", FILES)
def test_the_command_line_too(package: Path, name: str) -> None:
    for number, text in enumerate(changes(package, name)):
        if number % 29 and number > 3:
            continue
        for command in ("verify", "inspect", "generate"):
            check(package, partial(say, command, package), f"{command}: {text}")


def say(command: str, package: Path) -> str | None:
    """The line on stderr of a command; verify may have several, one a problem."""
    more = ["hello", "--max-new-tokens", "2"] if command == "generate" else []
    result = CliRunner().invoke(main, [command, str(package), *more])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1), result.output
    assert result.exit_code == 0 or result.stderr.startswith("Error: ")
    return None if command == "verify" else result.stderr.rstrip("\n") or None
