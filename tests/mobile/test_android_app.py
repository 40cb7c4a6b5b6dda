"""The Android app, compiled with its real resources against the platform's classes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.mobile.android_sdk import android_jar, build_config, resources
from tests.mobile.android_stubs import Member, called, exists
from tests.mobile.kotlin import ANDROID, compile_kotlin

pytestmark = pytest.mark.slow

APP, CORE = ANDROID / "app", ANDROID / "core" / "src" / "main" / "kotlin"
SOURCES = APP / "src" / "main" / "kotlin"


def compiled(
    sources: list[Path], app: Path, classes: list[Path], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Sources with the R and BuildConfig of `app`; of Java there is what Android has."""
    made = resources(app, folder)
    build_config(made)
    return compile_kotlin([*sources, made], [*classes, android_jar()], folder / "out", "-no-jdk")


@pytest.fixture(scope="module")
def app(aar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    done = compiled([CORE, SOURCES], APP, [aar], folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_app_and_the_core_compile_for_android(app: Path) -> None:
    classes = {path.name for path in (app / "out").rglob("*.class")}
    assert {"ChatActivity.class", "Session.class", "Delivery.class"} <= classes
    assert (app / "app.apk").is_file()


def test_a_string_that_is_missing_fails(app: Path, aar: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(APP, tmp_path / "app")
    strings = broken / "src/main/res/values/strings.xml"
    tree = ElementTree.parse(strings)
    root = tree.getroot()
    root.remove(next(entry for entry in root if entry.get("name") == "getting"))
    tree.write(strings)
    done = compiled([SOURCES], broken, [app / "out", aar], tmp_path)
    assert done.returncode != 0 and "unresolved reference 'getting'" in done.stderr


def test_a_resource_that_the_manifest_names_and_nobody_has_fails(tmp_path: Path) -> None:
    broken = shutil.copytree(APP, tmp_path / "app")
    manifest = broken / "src/main/AndroidManifest.xml"
    manifest.write_text(manifest.read_text().replace("@string/app_name", "@string/name"))
    with pytest.raises(subprocess.CalledProcessError) as failure:
        resources(broken, tmp_path / "out")
    assert b"string/name" in failure.value.stderr


def test_the_newest_platform_has_all_that_the_app_calls(app: Path) -> None:
    classes = (app / "out" / "gptoss" / "app").glob("*.class")
    members = {member for path in classes for member in called(path.read_bytes())}
    android = {member for member in members if member.owner.startswith("android/")}
    assert Member("android/system/Os", "setenv", 3) in android and len(android) > 20
    assert {member for member in android if not exists(member)} == set()
    for wrong in (
        Member("android/system/Os", "setenv", 2),
        Member("android/widget/TextView", "setTextSelectable", 1),
        Member("android/widget/Slider", "setText", 1),
    ):
        assert not exists(wrong)
