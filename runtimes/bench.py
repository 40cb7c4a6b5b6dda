"""How fast a package is here: load, prefill, decode, memory, and what share of the machine's."""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation import Options, generate
from gptoss_onnx.runtimes.kv_cache import row_bytes
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.session import Session


@dataclass(frozen=True)
class Bench:
    """One run's figures; seconds, bytes, tokens. None where the system does not tell."""

    package: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    load_seconds: float  # to a session that is ready to run
    first_token_seconds: float  # load and prefill of the prompt included
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_bytes: int | None  # resident at most, mapped weights included
    anonymous_bytes: int | None  # resident at the end and not backed by a file
    bytes_per_token: int | None  # read from memory to decode one token; None: not in the manifest
    memory_bandwidth: float  # bytes/s that these threads read, measured here
    bandwidth_share: float | None  # of it that decode used
    machine: str
    onnxruntime: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def bench(folder: Path, *, prompt_tokens: int, new_tokens: int, threads: int | None) -> Bench:
    """Open and run a package once: random prompt, sampled reply, so that experts vary by token."""
    if new_tokens < 2:
        raise UserError("--new-tokens must be at least 2: decode is timed between tokens")
    threads = threads or cores()
    started = time.perf_counter()
    package = Package.open(folder, threads=threads)
    session = Session(package)
    load_seconds = time.perf_counter() - started
    prompt = np.random.default_rng(0).integers(0, package.manifest.vocab_size, prompt_tokens)
    options = Options(new_tokens, Sampling(top_k=50, seed=0), stop_ids=frozenset())
    generation = generate(session, [int(token) for token in prompt], options)
    next(generation)
    first_token_seconds = time.perf_counter() - started
    for _ in generation:
        pass
    usage = generation.usage
    peak, anonymous = memory()
    bandwidth = memory_bandwidth(threads)
    # The average past: KV is read as far as it has grown.
    per_token = bytes_per_token(package, prompt_tokens + new_tokens // 2)
    decode = usage.decode_tokens_per_second or 0.0
    return Bench(
        package=package.manifest.name,
        threads=threads,
        prompt_tokens=prompt_tokens,
        new_tokens=usage.new_tokens,
        load_seconds=load_seconds,
        first_token_seconds=first_token_seconds,
        prefill_tokens_per_second=usage.prefill_tokens_per_second or 0.0,
        decode_tokens_per_second=decode,
        peak_bytes=peak,
        anonymous_bytes=anonymous,
        bytes_per_token=per_token,
        memory_bandwidth=bandwidth,
        bandwidth_share=None if per_token is None else per_token * decode / bandwidth,
        machine=machine(),
        onnxruntime=onnxruntime.__version__,
    )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """The processor's name and how many cores of it there are."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next(models, name).partition(":")[2].strip() or name
    return f"{name}, {cores()} cores"


def bytes_per_token(package: Package, past: int) -> int | None:
    """Bytes of weights and KV cache that decoding one token reads at `past` tokens of context.

    None where the manifest does not tell: it need not.
    """
    weights, kv = package.manifest.weights, package.manifest.kv
    if not {"dense", "experts", "experts_per_token"} <= weights.keys() or not weights.get(
        "num_experts"
    ):
        return None
    active = weights["experts"] * weights["experts_per_token"] // weights["num_experts"]
    row = 2 * row_bytes(kv.dtype, kv.num_kv_heads, kv.head_dim)  # key and value
    rows = sum(min(past, layer.window or past) for layer in kv.layers)
    return int(weights["dense"] + active + row * rows)


def memory() -> tuple[int | None, int | None]:
    """This process's (peak resident, anonymous) bytes, where the system is Linux."""
    # Not getrusage: its peak begins with that of the process this one was started from.
    return _kilobytes("status", "VmHWM"), _kilobytes("smaps_rollup", "Anonymous")


def _kilobytes(file: str, field: str) -> int | None:
    path = Path("/proc/self") / file
    lines = path.read_text().splitlines() if path.is_file() else []
    found = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    value = next(found, None)
    return None if value is None else int(value) * 1024


def memory_bandwidth(threads: int, seconds: float = 1.0) -> float:
    """Bytes a second that `threads` threads read from arrays far larger than any cache."""
    arrays = [np.ones(32 << 20, np.float32) for _ in range(threads)]
    counts = [0] * threads

    def read(index: int) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            arrays[index].max()  # the widest loads numpy has, and no arithmetic to wait for
            counts[index] += 1

    workers = [threading.Thread(target=read, args=(index,)) for index in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - started
    return sum(counts) * arrays[0].nbytes / elapsed
