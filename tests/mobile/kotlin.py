"""A Kotlin compiler and ONNX Runtime for Android, by name from npm, and how to run what they make.

`kotlin-compiler` is JetBrains' own package; its version is the one that the Gradle files name. The
AAR is the one that gradle.properties names, as a package for Unity carries it: no other on npm or
PyPI holds a release that the target table promises (onnxruntime-react-native only asks Maven).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.installed import from_npm, installed

ANDROID = ROOT / "mobile" / "android"
UNITY = ("com.github.asus4.onnxruntime", "0.4.9")
JNI = "libonnxruntime4j_jni.so"
JAVA = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")  # these runs are short


def named(pattern: str, file: str) -> str:
    """The one version that a Gradle file names."""
    found = re.search(pattern, (ANDROID / file).read_text())
    assert found is not None
    return found[1]


KOTLIN = named(r'kotlin\("jvm"\) version "([\d.]+)"', "core/build.gradle.kts")
RUNTIME = named(r"(?m)^onnxruntime=([\d.]+)$", "gradle.properties")


def _compiler() -> Path:
    if shutil.which("java") is None:
        pytest.skip("no java here")
    return from_npm("kotlin-compiler", KOTLIN) / "lib"


def stdlib() -> Path:
    return _compiler() / "kotlin-stdlib.jar"


@cache
def from_aar(name: str) -> bytes:
    """A file of the AAR."""
    with zipfile.ZipFile(from_npm(*UNITY) / "Plugins" / "Android" / "onnxruntime.aar") as aar:
        assert f"VERS_{RUNTIME}".encode() in aar.read(f"jni/x86_64/{JNI}")
        return aar.read(name)


def path(parts: Iterable[Path]) -> str:
    return os.pathsep.join(map(str, parts))


def compile_kotlin(
    sources: Iterable[Path], classes: Iterable[Path], out: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Sources against classes, into the folder `out`; warnings are errors."""
    lib = _compiler()
    preloader = ["-cp", str(lib / "kotlin-preloader.jar")]
    preloader += [
        "org.jetbrains.kotlin.preloading.Preloader",
        "-cp",
        str(lib / "kotlin-compiler.jar"),
    ]
    compiler = ["org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-reflect", "-Werror"]
    command = [*JAVA, *preloader, *compiler, "-jvm-target", "17", *options]
    command += ["-cp", path(classes), "-d", str(out), *map(str, sources)]
    return subprocess.run(command, capture_output=True, text=True)


def run_kotlin(
    main: str, classes: Iterable[Path], *arguments: object, native: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What a main function prints; `native` is a folder of `native_libraries`."""
    command = [*JAVA, "-cp", path([*classes, stdlib()])]
    environment = dict(os.environ)
    if native is not None:
        command.append(f"-Donnxruntime.native.path={native}")
        environment["LD_PRELOAD"] = str(native / "libonnxruntime.so")
    command += [main, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def only_x86_64_linux(what: str) -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip(f"{what} runs on x86-64 Linux alone, of what it can be tested on")


def native_libraries(folder: Path) -> Path:
    """The AAR's own JNI library over Linux's ONNX Runtime of the same release."""
    only_x86_64_linux("the AAR's library")
    wheel = installed("onnxruntime", RUNTIME) / "onnxruntime" / "capi"
    folder.mkdir()
    (folder / "libonnxruntime.so").symlink_to(wheel / f"libonnxruntime.so.{RUNTIME}")
    (folder / JNI).write_bytes(for_linux(from_aar(f"jni/x86_64/{JNI}")))
    return folder


# Of an ELF file's dynamic section: the libraries it needs, the versions of their symbols (Android's
# C library calls its own LIBC), and that all symbols be bound at the start: one is NNAPI's.
NEEDED, VERSIONS, AT_ONCE = {1}, {0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFF}, {0x1E, 0x6FFFFFFB}
DEBUG = 21  # an entry that says nothing
DYNAMIC, RELRO = 2, 0x6474E552


def for_linux(library: bytes) -> bytes:
    """An x86-64 library of Android's that takes its symbols from the process that loads it."""
    made = bytearray(library)
    (headers,) = struct.unpack_from("<Q", made, 32)
    size, count = struct.unpack_from("<HH", made, 54)
    for header in range(headers, headers + count * size, size):
        kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", made, header)
        if kind == RELRO:  # what is bound later is written later
            struct.pack_into("<I", made, header, 0)
        for entry in range(start, start + length, 16) if kind == DYNAMIC else ():
            (tag,) = struct.unpack_from("<Q", made, entry)
            if tag in NEEDED | VERSIONS | AT_ONCE:
                struct.pack_into("<QQ", made, entry, DEBUG, 0)
    return bytes(made)
