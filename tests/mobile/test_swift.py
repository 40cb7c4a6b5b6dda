"""The Swift core, built on Linux over ONNX Runtime's C API, held to what Kotlin's is held to.

Needs `swift` on the PATH: it was run with 6.0.3, Debian trixie's swiftlang. PyPI, npm and Debian
bookworm have none, so without it these tests skip. SwiftUI is Apple's alone.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import DEMO, ROOT
from tests.installed import from_npm, installed
from tests.mobile.bringing import COMPARISONS, App, Bringing
from tests.mobile.kotlin import RUNTIME, UNITY, only_x86_64_linux
from tests.mobile.tokens import compared
from tests.o200k import o200k

pytestmark = pytest.mark.slow

if shutil.which("swift") is None:
    pytest.skip("no swift here", allow_module_level=True)

IOS = ROOT / "mobile" / "ios"
HEADERS = "Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers"


class SwiftPackage:
    """A copy of the sources, built."""

    def __init__(self, folder: Path, slips: dict[str, tuple[str, str]]) -> None:
        only_x86_64_linux("libonnxruntime of the wheel")
        self.package = shutil.copytree(IOS, folder / "ios", ignore=shutil.ignore_patterns(".build"))
        for file, (right, wrong) in slips.items():
            source = self.package / "Sources" / "GptOss" / file
            text = source.read_text()
            assert text.count(right) == 1
            source.write_text(text.replace(right, wrong))
        library = folder / "lib"
        library.mkdir()
        wheel = installed("onnxruntime", RUNTIME) / "onnxruntime" / "capi"
        for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
            (library / name).symlink_to(wheel / f"libonnxruntime.so.{RUNTIME}")
        flags = ["-Xcc", f"-I{from_npm(*UNITY) / HEADERS}"]
        flags += ["-Xlinker", f"-L{library}", "-Xlinker", f"-rpath={library}"]
        done = self.swift("build", *flags)
        assert done.returncode == 0, done.stdout + done.stderr

    def swift(self, command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        line = ["swift", command, "-c", "release", "--package-path", str(self.package)]
        return subprocess.run([*line, *map(str, arguments)], capture_output=True, text=True)

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.swift("run", "--skip-build", program, *arguments)

    def check(self, *arguments: object) -> list[str]:
        return self.run("GptOssCheck", ROOT / "tests" / "vectors", *arguments).stdout.splitlines()


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> SwiftPackage:
    return SwiftPackage(tmp_path_factory.mktemp("swift"), {})


def test_the_core_holds_to_the_vectors_and_gives_the_demos_answers(
    core: SwiftPackage, android: Path
) -> None:
    assert core.check(DEMO, android) == [f"{COMPARISONS} passed, 0 failed"]


def test_tokenizers_are_read_and_refused_as_in_every_language(core: SwiftPackage) -> None:
    files = ROOT / "tests" / "vectors" / "tokenizer_files.json"
    done = core.run("GptOssTokens", DEMO / "tokenizer.json", files)
    assert done.stdout == f"{compared(files)} passed\n", done.stdout + done.stderr


def test_ids_at_real_size_are_the_librarys(core: SwiftPackage, real_size: Path) -> None:
    done = core.run("GptOssTokens", o200k() / "tokenizer.json", real_size)
    assert done.stdout == f"{compared(real_size)} passed\n", done.stdout + done.stderr


SLIPS = {
    "Sampler.swift": ("return z ^ (z >> 31)", "return z ^ (z >> 30)", "splitmix64 "),
    "Bpe.swift": ("(word, previous), previous)", "(word, place), place)", "encode "),
    "StreamParser.swift": ("longestHeader = 256", "longestHeader = 255", "events "),
}


@pytest.fixture(scope="module")
def slipped(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the check says of a core with all three, each of which only its own vectors tell."""
    slips = {file: (right, wrong) for file, (right, wrong, _) in SLIPS.items()}
    return SwiftPackage(tmp_path_factory.mktemp("slipped"), slips).check(DEMO)


@pytest.mark.parametrize("file", SLIPS)
def test_a_core_with_a_slip_does_not(slipped: list[str], file: str) -> None:
    assert any(line.startswith(SLIPS[file][2]) for line in slipped)
    assert not slipped[-1].endswith(" 0 failed")


@pytest.fixture(scope="module")
def app(core: SwiftPackage) -> App:
    return App(lambda *arguments: core.run("GptOssBring", *arguments))


class TestBringing(Bringing):
    pass
