"""A package on arm64 without the hardware: the Python runtime under Debian's qemu.

    python -m tests.targets.arm64 PACKAGE [QUESTIONS [ONNXRUNTIME]]     (at least 4 questions)

Everything is fetched by name into build/arm64: qemu and an arm64 Python by apt, which gets a root
of its own, the runtime's wheels for aarch64 by pip. Greedy answers on two processors must be those
of this machine; with damaged weights they must not be. How long anything takes here says nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.installed import debian_mirror

ROOT = Path(__file__).parents[2]
HOME = ROOT / "build" / "arm64"
QUESTIONS = ROOT / "demo" / "evaluation" / "questions.jsonl"
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITE = "bookworm"  # its Python is the 3.11 that wheels are taken for
PACKAGES = ("python3-minimal:arm64", "libpython3.11-stdlib:arm64", "libstdc++6:arm64")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")


@dataclass(frozen=True)
class Board:
    """An arm64 computer: what qemu calls its processor, and what /proc/cpuinfo says of it."""

    name: str
    cpu: str
    part: str
    features: str


BOARDS = (
    Board("Raspberry Pi 4", "cortex-a72", "0xd08", "fp asimd evtstrm crc32 cpuid"),
    # Dot products and half floats: other kernels of ONNX Runtime.
    Board(
        "Raspberry Pi 5",
        "cortex-a76",
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
        "dcpop asimddp",
    ),
)


def run(*command: object, **environment: str) -> str:
    """Standard output; what the command says of its progress and of errors goes to the screen."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"arm64: this failed with {done.returncode}: {' '.join(words)}")
    return done.stdout.decode()


def fetch_system() -> tuple[Path, Path]:
    """qemu, and a folder with an arm64 Python; fetched once."""
    root, partial, tools = HOME / "root", HOME / "root.partial", HOME / "tools"
    if not root.exists():
        apt = HOME / "apt"
        for folder in (partial, tools, apt):
            shutil.rmtree(folder, ignore_errors=True)  # of a fetch that was interrupted
        native = run("dpkg", "--print-architecture").strip()
        for name in ("lists/partial", "archives/partial", "none"):
            (apt / name).mkdir(parents=True)
        (apt / "status").touch()  # an empty system: what is asked for comes with all it needs
        try:
            source = f"deb [signed-by={KEYS}] {debian_mirror()} {SUITE} main\n"
        except RuntimeError as error:
            sys.exit(f"arm64: {error}")
        (apt / "sources.list").write_text(source)
        (apt / "apt.conf").write_text(apt_configuration(apt, native))
        configuration = str(apt / "apt.conf")
        run("apt-get", "-qq", "update", APT_CONFIG=configuration)
        for wanted, folder in ((PACKAGES, partial), ((f"qemu-user-static:{native}",), tools)):
            run(
                *("apt-get", "-qq", "--yes", "--download-only", "--no-install-recommends"),
                *("install", *wanted),
                APT_CONFIG=configuration,
            )
            for archive in sorted((apt / "archives").glob("*.deb")):
                run("dpkg-deb", "--extract", archive, folder)
                archive.unlink()
        partial.rename(root)
    return tools / "usr" / "bin" / "qemu-aarch64-static", root


def apt_configuration(apt: Path, native: str) -> str:
    settings = {
        "Dir": apt,
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt,
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": apt / "none",
        "Dir::Etc::parts": apt / "none",
        "Dir::Etc::preferencesparts": apt / "none",
        "APT::Architecture": native,
        "APT::Sandbox::User": "root",
    }
    lines = [f'{name} "{value}";' for name, value in settings.items()]
    return "\n".join([*lines, f'APT::Architectures {{ "{native}"; "arm64"; }};', ""])


def fetch_wheels(onnxruntime: str) -> Path:
    """The runtime's dependencies for aarch64, in the versions that are installed here."""
    folder = HOME / f"onnxruntime-{onnxruntime}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        names = [f"{name}=={version(name)}" for name in ("numpy", "tokenizers")]
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        run(
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-cache-dir"),
            *("--target", partial, "--only-binary=:all:", "--python-version", "3.11", *platforms),
            *(*names, f"onnxruntime=={onnxruntime}"),
        )
        partial.rename(folder)
    return folder


def become(board: Board, root: Path) -> None:
    """Files of that board below `root`: ONNX Runtime reads them, and the host's are not for arm."""
    system = root / "sys" / "devices" / "system" / "cpu"
    system.mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present", "online"):
        (system / name).write_text("0-3\n")
    (system / "kernel_max").write_text("3\n")
    (root / "proc").mkdir(exist_ok=True)
    core = (
        f"BogoMIPS\t: 108.00\nFeatures\t: {board.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {board.part}\nCPU revision\t: 3\n"
    )
    cores = "\n".join(f"processor\t: {number}\n{core}" for number in range(4))
    (root / "proc" / "cpuinfo").write_text(f"{cores}\nModel\t\t: {board.name}\n")


def main(package: Path, questions: int, onnxruntime: str) -> None:
    ask = ("-m", "tests.targets.answers")
    count = str(questions)
    here = json.loads(run(sys.executable, *ask, package, QUESTIONS, count))
    (qemu, root), wheels = fetch_system(), fetch_wheels(onnxruntime)

    def there(board: Board, package: Path, count: str) -> dict[str, Any]:
        become(board, root)
        emulated = (qemu, "-cpu", board.cpu, "-L", root, root / "usr" / "bin" / "python3.11")
        paths = {"PYTHONPATH": str(wheels), "PYTHONPYCACHEPREFIX": str(HOME / "pycache")}
        found = json.loads(run(*emulated, *ask, package, QUESTIONS, count, **paths))
        assert found["machine"] == "aarch64" and found["onnxruntime"] == onnxruntime, found
        return found

    for board in BOARDS:
        found = there(board, package, count)
        pairs = list(zip(here["replies"], found["replies"], strict=True))
        wrong = [ours["question"] for ours, theirs in pairs if ours != theirs]
        said = f"{board.name} ({board.cpu}), onnxruntime {onnxruntime}: {package.name}"
        if wrong:
            sys.exit(f"arm64: {said}: {len(wrong)} of {len(pairs)} answers differ: {wrong}")
        print(f"{said}: {len(pairs)} greedy answers are those of {here['machine']}", flush=True)
    if there(BOARDS[0], damaged(package), "4")["replies"][0] == here["replies"][0]:
        sys.exit("arm64: a package with damaged weights gives the same answer: this check is blind")
    print("a package with damaged weights answers otherwise, as it must")


def damaged(package: Path) -> Path:
    """A copy with a part of its weights overwritten."""
    copy = HOME / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(package, copy)
    data = copy / "model.onnx.data"
    content = bytearray(data.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 4] = bytes(len(content) // 4)
    data.write_bytes(content)
    return copy


if __name__ == "__main__":
    asked = sys.argv[1:] + [None] * 2
    main(Path(asked[0]), int(asked[1] or 20), asked[2] or version("onnxruntime"))
