"""The Kotlin core, compiled as Gradle would and held to the vectors and to a package's answers."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import DEMO, ROOT
from tests.mobile.bringing import COMPARISONS, App, Bringing, add
from tests.mobile.kotlin import ANDROID, compile_kotlin, named, native_libraries, run_kotlin
from tests.mobile.package_server import PackageServer
from tests.mobile.tokens import compared, halves
from tests.o200k import o200k

pytestmark = pytest.mark.slow

CHECK, BRING, TOKENS = (f"gptoss.check.{name}Kt" for name in ("Check", "Bring", "Tokens"))
VECTORS = ROOT / "tests" / "vectors"


@pytest.fixture(scope="module")
def core(aar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes of the core and its checks."""
    out = tmp_path_factory.mktemp("core")
    done = compile_kotlin([ANDROID / "core" / "src"], [aar], out)
    assert done.returncode == 0, done.stderr
    schema = (ANDROID / named(r'from\("\$rootDir/([^"]+)"\)', "core/build.gradle.kts")).resolve()
    shutil.copy(schema, out / "gptoss")
    return out


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_libraries(tmp_path_factory.mktemp("native") / "lib")


def test_the_core_holds_to_the_vectors_and_gives_the_demos_answers(
    core: Path, aar: Path, native: Path, android: Path
) -> None:
    done = run_kotlin(CHECK, [core, aar], VECTORS, DEMO, android, native=native)
    assert done.stdout == f"{COMPARISONS} passed, 0 failed\n", done.stdout + done.stderr
    assert done.returncode == 0


def test_tokenizers_are_read_and_refused_as_in_every_language(core: Path, aar: Path) -> None:
    files = VECTORS / "tokenizer_files.json"
    done = run_kotlin(TOKENS, [core, aar], DEMO / "tokenizer.json", files)
    assert done.stdout == f"{compared(files)} passed\n", done.stdout + done.stderr


def test_ids_at_real_size_are_the_librarys(
    core: Path, aar: Path, real_size: Path, tmp_path: Path
) -> None:
    (tmp_path / "halves.json").write_text(json.dumps(halves()))
    for cases in (real_size, tmp_path / "halves.json"):
        done = run_kotlin(TOKENS, [core, aar], o200k() / "tokenizer.json", cases)
        assert done.stdout == f"{compared(cases)} passed\n", done.stdout + done.stderr


SLIPS = {
    "Sampler.kt": ("return z xor (z shr 31)", "return z xor (z shr 30)", "splitmix64 "),
    "Bpe.kt": ("offer(previous[place])", "offer(place)", "encode "),
    "StreamParser.kt": ("LONGEST_HEADER = 256", "LONGEST_HEADER = 255", "events "),
}


@pytest.fixture(scope="module")
def slipped(core: Path, aar: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the check says of a core with all three, each of which only its own vectors tell."""
    sources, out = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("slipped")
    for file, (right, wrong, _) in SLIPS.items():
        text = (ANDROID / "core/src/main/kotlin/gptoss" / file).read_text()
        assert text.count(right) == 1
        (sources / file).write_text(text.replace(right, wrong))
    done = compile_kotlin([sources], [core, aar], out, f"-Xfriend-paths={core}")
    assert done.returncode == 0, done.stderr
    done = run_kotlin(CHECK, [out, core, aar], VECTORS, DEMO)
    assert done.returncode == 1
    return done.stdout.splitlines()


@pytest.mark.parametrize("file", SLIPS)
def test_a_core_with_a_slip_does_not(slipped: list[str], file: str) -> None:
    assert any(line.startswith(SLIPS[file][2]) for line in slipped)


@pytest.fixture(scope="module")
def app(core: Path, aar: Path, native: Path) -> App:
    return App(partial(run_kotlin, BRING, [core, aar], native=native))


class TestBringing(Bringing):
    def test_a_package_that_came_with_the_app_is_unpacked(
        self, app: App, android: Path, tmp_path: Path
    ) -> None:
        asset, here = shutil.copytree(android, tmp_path / "asset"), tmp_path / "package"
        assert app.bring(asset, here) == ["complete: false", "complete: true", "done"]
        assert (here / "model.ort").read_bytes() == (android / "model.ort").read_bytes()
        (asset / "manifest.json").unlink()
        assert app.bring(asset, here)[2].startswith("manifest.json did not come with the app: ")

    def test_too_little_room_is_told_before_anything_comes(
        self, app: App, server: PackageServer, tmp_path: Path
    ) -> None:
        add(server, "x", {"size": 10**15, "sha256": "0" * 64})
        told = app.bring(server.url, tmp_path)
        assert told[2].startswith("the package needs 95367") and len(told) == 3
        assert [asked for asked, _ in server.asked] == ["manifest.json"]
        assert not list(tmp_path.iterdir())
