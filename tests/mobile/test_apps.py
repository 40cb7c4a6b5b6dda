"""The app skeletons: versions as the target tables promise, and the cores held to the vectors.

A Kotlin compiler and the classes come from GPTOSS_KOTLIN_JARS, a folder of the compiler's jars
(PyPI's kotlin-jupyter-kernel holds them), and GPTOSS_AAR, the AAR unpacked; without, tests skip.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from runtimes.target import get_target
from tests.conftest import DEMO, ROOT

ANDROID, IOS = ROOT / "mobile" / "android", ROOT / "mobile" / "ios"
COMPILER = "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"


def release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def test_the_apps_bring_the_runtime_that_packages_promise() -> None:
    aar = re.search(r"^onnxruntime=([\d.]+)$", (ANDROID / "gradle.properties").read_text(), re.M)
    pod = re.search(r'let onnxruntime = "([\d.]+)"', (IOS / "Package.swift").read_text())
    assert aar and release(aar[1]) >= release(get_target("android").min_runtime)
    assert pod and release(pod[1]) >= release(get_target("ios").min_runtime)


def test_every_part_is_there() -> None:
    for name in ("settings.gradle.kts", "core/build.gradle.kts", "app/build.gradle.kts"):
        assert (ANDROID / name).is_file()
    manifest = ElementTree.parse(ANDROID / "app/src/main/AndroidManifest.xml").getroot()
    activity = manifest.find("application/activity")
    assert activity is not None
    name = next(value for key, value in activity.attrib.items() if key.endswith("name"))
    assert (ANDROID / f"app/src/main/kotlin/gptoss/app/{name.removeprefix('.')}.kt").is_file()
    targets = re.findall(r'\.target\(name: "(\w+)"', (IOS / "Package.swift").read_text())
    assert targets and all((IOS / "Sources" / target).is_dir() for target in targets)


def test_the_cores_name_no_class_of_a_phones_system() -> None:
    kotlin = [path.read_text() for path in (ANDROID / "core" / "src" / "main").rglob("*.kt")]
    swift = [path.read_text() for path in (IOS / "Sources" / "GptOss").glob("*.swift")]
    assert len(kotlin) > 8 and len(swift) > 8
    assert not [text for text in kotlin if re.search(r"^import android", text, re.M)]
    assert not [text for text in swift if re.search(r"^import (UIKit|SwiftUI)", text, re.M)]


def test_neither_app_lets_the_runtime_report_home() -> None:
    core = (ANDROID / "core/src/main/kotlin/gptoss/Chat.kt").read_text()
    app = (ANDROID / "app/src/main/kotlin/gptoss/app/ChatActivity.kt").read_text()
    swift = (IOS / "Sources/GptOss/OnnxRuntime.swift").read_text()
    assert "setTelemetry(false)" in core and "ORT_DISABLE_TELEMETRY" in app
    assert "DisableTelemetryEvents" in swift and "ORT_DISABLE_TELEMETRY" in swift


@pytest.fixture(scope="module")
def kotlin() -> tuple[list[Path], Path]:
    jars, aar = os.environ.get("GPTOSS_KOTLIN_JARS"), os.environ.get("GPTOSS_AAR")
    if not jars or not aar or not shutil.which("java"):
        pytest.skip("no Kotlin compiler: set GPTOSS_KOTLIN_JARS and GPTOSS_AAR, and install Java")
    return sorted(Path(jars).glob("*.jar")), Path(aar) / "classes.jar"


def check(kotlin: tuple[list[Path], Path], sources: Path, out: Path) -> str:
    """What the core, compiled, says of the vectors."""
    jars, classes = kotlin
    stdlib = next(jar for jar in jars if jar.name.startswith("kotlin-stdlib"))
    compile_ = ["java", "-cp", os.pathsep.join(map(str, jars)), COMPILER, "-no-stdlib"]
    compile_ += ["-no-reflect", "-cp", f"{stdlib}{os.pathsep}{classes}", "-d", str(out)]
    subprocess.run([*compile_, str(sources)], check=True, capture_output=True)
    path = os.pathsep.join(map(str, (out, stdlib, classes)))
    run = ["java", "-cp", path, "gptoss.check.CheckKt", str(ROOT / "tests/vectors"), str(DEMO)]
    return subprocess.run(run, capture_output=True, text=True).stdout.splitlines()[-1]


def test_the_kotlin_core_holds_to_the_vectors(
    kotlin: tuple[list[Path], Path], tmp_path: Path
) -> None:
    assert re.fullmatch(r"8\d\d passed, 0 failed", check(kotlin, ANDROID / "core/src", tmp_path))


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("Sampler.kt", "return z xor (z shr 31)", "return z xor (z shr 30)"),
        ("Tokenizer.kt", "if (merged < best)", "if (merged <= best)"),
        ("StreamParser.kt", "LONGEST_HEADER = 256", "LONGEST_HEADER = 255"),
    ],
)
def test_a_core_with_a_slip_does_not(
    kotlin: tuple[list[Path], Path], tmp_path: Path, file: str, right: str, wrong: str
) -> None:
    sources = shutil.copytree(ANDROID / "core/src", tmp_path / "src")
    source = sources / "main/kotlin/gptoss" / file
    text = source.read_text()
    assert right in text
    source.write_text(text.replace(right, wrong))
    assert not check(kotlin, sources, tmp_path / "out").endswith(", 0 failed")
