"""The app skeletons as they are written: their parts, and versions as the target tables promise."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from gptoss_onnx.runtimes.target import get_target
from tests.conftest import ROOT

ANDROID, IOS = ROOT / "mobile" / "android", ROOT / "mobile" / "ios"


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
    targets = re.findall(
        r'\.(?:executableT|t)arget\(name: "(\w+)"', (IOS / "Package.swift").read_text()
    )
    assert targets and all((IOS / "Sources" / target).is_dir() for target in targets)


def test_the_cores_name_no_class_of_a_phones_system() -> None:
    kotlin = [path.read_text() for path in (ANDROID / "core" / "src" / "main").rglob("*.kt")]
    swift = [path.read_text() for path in (IOS / "Sources" / "GptOss").glob("*.swift")]
    assert len(kotlin) > 8 and len(swift) > 8
    assert not [text for text in kotlin if re.search(r"^import android", text, re.M)]
    assert not [text for text in swift if re.search(r"^import (UIKit|SwiftUI)", text, re.M)]


def test_neither_app_lets_the_runtime_report_home() -> None:
    core = (ANDROID / "core/src/main/kotlin/gptoss/GraphChoice.kt").read_text()
    app = (ANDROID / "app/src/main/kotlin/gptoss/app/ChatActivity.kt").read_text()
    swift = (IOS / "Sources/GptOss/OnnxRuntime.swift").read_text()
    assert "setTelemetry(false)" in core and "ORT_DISABLE_TELEMETRY" in app
    assert "DisableTelemetryEvents" in swift and "ORT_DISABLE_TELEMETRY" in swift
