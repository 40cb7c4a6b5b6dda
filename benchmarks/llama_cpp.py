"""A package beside llama.cpp on the same checkpoint: alternating runs, medians and ratios.

    .venv/bin/python benchmarks/llama_cpp.py PACKAGE GGUF --llama-bench .../llama-bench

llama-bench and llama-quantize build from the source distribution of llama-cpp-python
(vendor/llama.cpp). Its converter makes the GGUF (`to_gguf.py` beside this file), then
    llama-quantize --tensor-type ffn_gate_exps=mxfp4 --tensor-type ffn_up_exps=mxfp4 \
        --tensor-type ffn_down_exps=mxfp4 F16.gguf Q4.gguf Q4_0
keeps the MXFP4 experts and makes the rest Q4_0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import click

FILE = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("package", type=FILE)
@click.argument("gguf", type=FILE)
@click.option("--llama-bench", type=FILE, required=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--runs", default=5, show_default=True)
def main(package: Path, gguf: Path, llama_bench: Path, threads: int, runs: int) -> None:
    figures: dict[str, list[float]] = {}
    for _ in range(runs):
        ours = run(
            sys.executable,
            "-m",
            "gptoss_onnx.cli",
            "bench",
            package,
            "--threads",
            threads,
            "--json",
        )
        for test in ("prefill", "decode"):
            figures.setdefault(f"{test} ours", []).append(ours[f"{test}_tokens_per_second"])
        figures.setdefault("GB/s", []).append(ours["memory_bandwidth"] / 1e9)
        theirs = run(
            llama_bench, "-m", gguf, "-t", threads, "-p", 256, "-n", 64, "-r", 1, "-o", "json"
        )
        for entry in theirs:
            test = "prefill" if entry["n_prompt"] else "decode"
            figures.setdefault(f"{test} llama.cpp", []).append(entry["avg_ts"])
    for name, values in sorted(figures.items()):
        print(f"{name:20} median {median(values):7.1f}  of {[round(v, 1) for v in values]}")
    for test in ("prefill", "decode"):
        ratio = median(figures[f"{test} ours"]) / median(figures[f"{test} llama.cpp"])
        print(f"{test} ratio {ratio:.2f}")


def run(*command: object) -> list | dict:
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
