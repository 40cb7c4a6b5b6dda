"""What an export to each target takes and weighs, as a table.

    python benchmarks/targets.py build/20b-4l build/targets [PRESET [TARGET ...]]

Linux only: reads the peak of the exporting process's own memory from /proc.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gptoss_onnx.runtimes.target import load_targets

EXPORT = """
import sys
from gptoss_onnx.cli import main
main(sys.argv[1:], standalone_mode=False)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def measure(checkpoint: str, target: str, preset: str, folder: Path) -> dict[str, Any]:
    """Seconds, peak memory and bytes of one export; its folder is removed again."""
    output = folder / target
    command = [sys.executable, "-c", EXPORT, "export", checkpoint, "--target", target]
    command += ["--quant", preset, "--kv", "float", "--output", str(output), "--force"]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - start
    manifest = json.loads((output / "manifest.json").read_text())
    config = json.loads((output / "config.json").read_text())
    experts = config["num_hidden_layers"] * config["num_local_experts"]
    experts *= 3 * config["hidden_size"] * config["intermediate_size"]
    sizes = {name: entry["size"] for name, entry in manifest["files"].items()}
    graphs = [entry["graph"] for entry in manifest["graphs"] or [manifest]]
    shutil.rmtree(output)
    return {
        "seconds": seconds,
        "peak": int(done.stdout.split()[-1]) * 1024,
        "weights": sum(size for name, size in sizes.items() if ".data" in name or ".ort" in name),
        "graphs": sum(size for name, size in sizes.items() if name in graphs),
        "bits": 8 * manifest["weights"]["experts"] / experts,
    }


def main(checkpoint: str, folder: str, preset: str = "int4", *names: str) -> None:
    print("| target | seconds | peak memory | data | graphs | bits an expert weight |")
    print("|---|---|---|---|---|---|")
    for name, target in load_targets().items():
        if preset in target.presets and (not names or name in names):
            made = measure(checkpoint, name, preset, Path(folder))
            print(
                f"| `{name}` | {made['seconds']:.0f} | {made['peak'] / 2**30:.2f} GiB "
                f"| {made['weights'] / 1e9:.3f} GB | {made['graphs'] / 1e6:.1f} MB "
                f"| {made['bits']:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
