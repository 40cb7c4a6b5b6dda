"""The wheel as a user has it: alone in a clean environment, in a folder with namesakes of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.conftest import ROOT, DemoPackage

pytestmark = pytest.mark.slow

# Folders and files that a user may have where the command runs.
NAMESAKES = ("cli.py", *(f"{n}/__init__.py" for n in ("export", "evaluation", "runtimes")))
ROOMS = ("export", "graph_passes", "runtimes", "evaluation", "tuning", "mobile", "assistant")
NO_ROOMS = {"benchmarks", "demo", "tests", "examples"}  # of the repository alone
OTHER_LANGUAGES = ("runtimes/javascript/", "mobile/android/", "mobile/ios/")
TALK = """
from gptoss_onnx import Chat, Package
events = Chat(Package.open({package!r})).send("What does os.path.join do?")
print("".join(event.text for event in events if event.channel == "final"))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: building leaves folders in the source.
    files = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(["git", *files], cwd=ROOT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if name.endswith((".py", ".toml", ".typed", ".html", ".json")) or "/" not in name:
            copy = folder / "source" / name
            if (ROOT / name).is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, folder, folder / "source"], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_one_import_name_holds_every_module_and_what_they_read(wheel: Path) -> None:
    """A room, a module or a data file that pyproject.toml does not name is missed here."""
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = subprocess.run(
        ["git", "ls-files", "-z", *ROOMS, "gptoss_onnx"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    files = {name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    ours = {name for name in files if not name.startswith(OTHER_LANGUAGES) and name[-3:] != ".md"}
    assert names == {f"gptoss_onnx/{name.removeprefix('gptoss_onnx/')}" for name in ours}


def test_every_folder_of_modules_is_a_room() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found - NO_ROOMS == {*ROOMS, "gptoss_onnx"}


def test_it_chats_in_a_clean_environment_beside_namesakes(
    wheel: Path, demo_package: DemoPackage, tmp_path: Path
) -> None:
    for name in NAMESAKES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise AssertionError('a file of the user was imported')\n")
    clean = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", clean], check=True)
    binaries = clean / ("Scripts" if sys.platform == "win32" else "bin")
    subprocess.run([binaries / "pip", "install", "--quiet", wheel], check=True)

    def said(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    package = str(demo_package("int4"))
    answer = said(binaries / "python", "-c", TALK.format(package=package))
    assert answer.startswith("Join two or more pathname components")
    assert said(binaries / "gptoss", "generate", package, "What does os.path.join do?") == answer
    assert "verified" in said(binaries / "gptoss", "verify", package)
    refused = subprocess.run(
        [binaries / "gptoss", "export", "demo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert "pip install" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
