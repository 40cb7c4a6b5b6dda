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


def test_one_import_name(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"gptoss_onnx"}
    rooms = {name.split("/")[1] for name in names if name.count("/") > 1}
    assert {"export", "graph_passes", "runtimes", "evaluation", "tuning", "mobile"} <= rooms
    assert "gptoss_onnx/py.typed" in names
    assert "gptoss_onnx/evaluation/templates/report.html" in names
    sources = {f"gptoss_onnx/{path.relative_to(ROOT)}" for path in ROOT.glob("runtimes/**/*.py")}
    assert {name for name in sources if "node_modules" not in name} <= set(names)


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
