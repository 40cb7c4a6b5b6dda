"""Check a package on a machine with a GPU, a line a check; needs the runtime's dependencies only.

    python tests/targets/cuda_check.py PACKAGE [--against CPU_PACKAGE] [--questions 20]

Where nodes run, prefill in chunks and decode past the window, the cache in the GPU's memory, shapes
that CUDA graphs take and a captured one, greedy answers of CPU_PACKAGE, and tokens a second. Exits
with 1 where a check fails, with 2 where there is no GPU to check with.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from gptoss_onnx.runtimes.errors import UserError  # noqa: E402
from gptoss_onnx.runtimes.generation import Options, generate  # noqa: E402
from gptoss_onnx.runtimes.harmony import Message  # noqa: E402
from gptoss_onnx.runtimes.kv_cache import DEVICES, DeviceBuffer, make_buffer  # noqa: E402
from gptoss_onnx.runtimes.package import Package  # noqa: E402
from gptoss_onnx.runtimes.sampling import Sampling  # noqa: E402
from gptoss_onnx.runtimes.session import Session  # noqa: E402

Floats = NDArray[np.float32]
QUESTIONS = ROOT / "demo" / "evaluation" / "questions.jsonl"
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# ONNX Runtime itself puts these on the CPU where they compute lengths from a Shape: that is faster.
OF_LENGTHS = {
    "Shape", "Cast", "Squeeze", "Unsqueeze", "Gather", "Concat", "Slice",
    "Add", "Sub", "Div", "Equal",
}  # fmt: skip
STANDARD = ("", "ai.onnx")
LONG = 40  # tokens past the longest window


@dataclass(frozen=True)
class Checked:
    """What a check found; `right` None where it has nothing to judge."""

    name: str
    right: bool | None
    found: str

    def line(self) -> str:
        word = {True: "ok", False: "FAILED", None: "--"}[self.right]
        return f"{word:7} {self.name}: {self.found}"


def tolerance(package: Package) -> float:
    """Of the largest |logit|: about ten results a layer, each rounded by half an eps, at random.

    Twice that, since both of two runs are rounded and the worst of many logits is looked at.
    """
    manifest = package.manifest
    return 2 * math.sqrt(10 * len(manifest.kv.layers)) * EPS[manifest.activations]


def prompt(package: Package) -> list[int]:
    """Ids that reach past every window; any will do."""
    windows = [layer.window or 0 for layer in package.manifest.kv.layers]
    count = min(max(windows) + LONG + 64, package.manifest.context_length - 8)
    return [
        int(i) for i in np.random.default_rng(1).integers(0, package.manifest.vocab_size, count)
    ]


def away(ours: Floats, theirs: Floats) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def placement(package: Package, provider: str) -> Checked:
    """Every node on the GPU but those of lengths: a kernel that is missing falls to the CPU."""
    with_record = replace(package.manifest, session=_recording(package))
    graph = Package(package.folder, with_record, providers=[provider]).graph
    nodes = [
        (part.ep_name, node.domain, node.op_type)
        for part in graph.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    return judged(nodes, provider)


def judged(nodes: Sequence[tuple[str, str, str]], provider: str) -> Checked:
    """By (provider, domain, operator) of each node."""
    elsewhere = [(domain, op) for ep, domain, op in nodes if ep != provider]
    wrong = {op for domain, op in elsewhere if domain not in STANDARD or op not in OF_LENGTHS}
    found = f"{len(nodes) - len(elsewhere)} nodes there, {len(elsewhere)} of lengths on the CPU"
    if wrong:
        found = f"{len(elsewhere)} nodes elsewhere, among them {', '.join(sorted(wrong))}"
    return Checked("placement", not wrong, found)


def _recording(package: Package) -> dict[str, object]:
    session = dict(package.manifest.session)
    config = {**session.get("config", {}), "session.record_ep_graph_assignment_info": "1"}
    return {**session, "config": config}


def chunks(package: Package) -> Checked:
    """The logits after a prompt, however it was fed: at once, in chunks, one by one at its end."""
    ids, most = prompt(package), tolerance(package)
    whole = Session(package).feed(ids).copy()
    worst = 0.0
    for size, alone in ((64, 0), (50, LONG)):
        session = Session(package)
        steps = [*range(0, len(ids) - alone, size), *range(len(ids) - alone, len(ids))]
        for start, end in zip(steps, [*steps[1:], len(ids)], strict=True):
            logits = session.feed(ids[start:end])
        worst = max(worst, away(logits, whole))
    right = bool(np.isfinite(whole).all()) and worst <= most
    return Checked(
        "chunks", right, f"differ by {worst:.1e} of the largest logit (at most {most:.1e})"
    )


def cache(package: Package, provider: str) -> Checked:
    """KV where the provider computes, and bound in place: no step copies it."""
    session = Session(package)
    if provider not in DEVICES or not package.manifest.kv.in_place:
        return Checked(
            "cache", None, "made anew by each run" if provider in DEVICES else "on the host"
        )
    session.feed([1, 2, 3])
    buffers = [buffer for buffer in session.batch._buffers if isinstance(buffer, DeviceBuffer)]
    before = [buffer.value.data_ptr() for buffer in buffers]
    session.feed([4])
    moved = [b for b, at in zip(buffers, before, strict=True) if b.value.data_ptr() != at]
    wrong = len(session.batch._buffers) - len(buffers) + len(moved)
    device = {buffer.value.device_name() for buffer in buffers}
    return Checked("cache", wrong == 0 and device == {DEVICES[provider]}, f"on {', '.join(device)}")


def fixed_shapes(package: Package, provider: str, *, capture: bool) -> Checked:
    """Single tokens with every shape and address as it will stay: mask, cache, ids and logits."""
    name = "captured graph" if capture else "fixed shapes"
    if not package.manifest.kv.in_place:
        return Checked(name, None, "this graph's cache grows at every step")
    if capture and provider not in DEVICES:
        return Checked(name, None, "only a GPU captures graphs")
    ids, most, session = prompt(package)[:24], tolerance(package), Session(package)
    worst = 0.0
    for token, logits in zip(ids, _fixed(package, ids, provider, capture=capture), strict=True):
        worst = max(worst, away(logits, session.feed([token])))
    return Checked(name, worst <= most, f"differ by {worst:.1e} of the largest logit")


def _fixed(
    package: Package, ids: Sequence[int], provider: str, *, capture: bool
) -> Iterator[Floats]:
    manifest, device = package.manifest, DEVICES.get(provider, "cpu")
    options = {**manifest.session.get("provider_options", {})}
    if capture:
        options["enable_cuda_graph"] = "1"
    settings = {**manifest.session, "provider_options": options}
    own = Package(package.folder, replace(manifest, session=settings), providers=[provider])
    graph, capacity = own.graph, 64
    binding = graph.io_binding()
    held: dict[str, onnxruntime.OrtValue] = {}
    for name, array in (
        ("input_ids", np.zeros((1, 1), np.int64)),
        ("attention_mask", np.zeros((1, capacity), np.int64)),
    ):
        held[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
        binding.bind_ortvalue_input(name, held[name])
    shape = (1, manifest.kv.num_kv_heads, capacity, manifest.kv.head_dim)
    buffers = [
        make_buffer(
            f"past_key_values.{layer}.{part}", f"present.{layer}.{part}", shape, None,
            dtype=manifest.kv.dtype, provider=provider, in_place=True,
        )
        for layer in range(len(manifest.kv.layers)) for part in ("key", "value")
    ]  # fmt: skip
    for buffer in buffers:
        buffer.bind(binding, 0, 1)
    empty = np.zeros((1, 1, manifest.vocab_size), np.float32)
    logits = onnxruntime.OrtValue.ortvalue_from_numpy(empty, device, 0)
    binding.bind_ortvalue_output("logits", logits)
    for count, token in enumerate(ids, start=1):
        held["input_ids"].update_inplace(np.array([[token]]))
        mask = (np.arange(capacity) < count).astype(np.int64)[None]
        held["attention_mask"].update_inplace(mask)
        graph.run_with_iobinding(binding)
        yield logits.numpy()[0, 0]


def answers(package: Package, against: Package, questions: Path, count: int) -> Checked:
    """Greedy replies of `against`, fed to both: the same token at every place, or a near tie.

    A tie is as near as rounding may move two logits: apart by the tolerance, at both packages.
    """
    lines = questions.read_text(encoding="utf-8").splitlines()
    most, same, ties, wrong = tolerance(package), 0, 0, []
    for line in lines[:: max(1, len(lines) // count)][:count]:
        text = json.loads(line)["messages"][0]["content"]
        ids = against.harmony.render([Message("user", text)])
        options = Options(160, Sampling(temperature=0))
        reply = list(generate(Session(against), ids, options))
        ours, theirs = Session(package), Session(against)
        for chunk, token in zip([ids, *([t] for t in reply)], reply, strict=False):
            logits, others = ours.feed(chunk), theirs.feed(chunk)
            best = int(logits.argmax())
            here = float(logits[best] - logits[token]) / float(np.abs(logits).max())
            there = float(others[token] - others[best]) / float(np.abs(others).max())
            gap = max(here, there)
            same += best == token
            ties += best != token and gap <= most
            if best != token and gap > most:
                wrong.append(f"{text[:40]!r} at {len(ids)}: {gap:.1e}")
    found = f"{same} tokens alike, {ties} near ties, {len(wrong)} apart"
    return Checked("answers", not wrong, f"{found} ({wrong[0]})" if wrong else found)


def speed(package: Package) -> Checked:
    """Prefill of 512 tokens and 128 decoded after them; the second of two runs."""
    most = package.manifest.context_length - 8
    session = Session(package, max_length=min(1024, most))
    size, new = min(512, most // 2), min(128, most // 4)
    ids = [int(i) for i in np.random.default_rng(2).integers(0, package.manifest.vocab_size, size)]
    for _ in range(2):
        session.reset()
        started = time.perf_counter()
        token = int(session.feed(ids).argmax())
        between = time.perf_counter()
        for _ in range(new):
            token = int(session.feed([token]).argmax())
        ended = time.perf_counter()
    figures = (
        f"prefill {size / (between - started):.0f}, decode {new / (ended - between):.1f} tokens/s"
    )
    return Checked("speed", None, figures)


def opened(folder: Path, provider: str) -> Package:
    """The package on that provider; UserError where this machine has none."""
    hint = "onnxruntime-gpu and an NVIDIA GPU" if provider in DEVICES else provider
    if provider not in onnxruntime.get_available_providers():
        here = ", ".join(onnxruntime.get_available_providers())
        raise UserError(f"this needs {hint}: onnxruntime {onnxruntime.__version__} has {here}")
    package = Package.open(folder, providers=[provider])
    assert package.graph.get_providers()[0] == provider
    return package


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--against", type=Path, help="a CPU package of the same checkpoint")
    parser.add_argument("--questions", type=int, default=20, help="how many to answer")
    parser.add_argument("--provider", default="CUDAExecutionProvider")
    given = parser.parse_args(arguments)
    try:
        package = opened(given.package, given.provider)
        against = given.against and Package.open(given.against)
    except UserError as error:
        print(f"cuda_check: {error}", file=sys.stderr)
        return 2
    provider = given.provider
    checks: list[Callable[[], Checked]] = [
        lambda: placement(package, provider),
        lambda: chunks(package),
        lambda: cache(package, provider),
        lambda: fixed_shapes(package, provider, capture=False),
        lambda: fixed_shapes(package, provider, capture=True),
        lambda: speed(package),
    ]
    if against:
        checks.insert(3, lambda: answers(package, against, QUESTIONS, given.questions))
    right = True
    for check in checks:
        try:
            checked = check()
        except Exception as error:  # a failure of one check must not hide what the others find
            line = (str(error).splitlines() or [type(error).__name__])[0]
            checked = Checked("a check", False, f"{type(error).__name__}: {line}")
        print(checked.line(), flush=True)
        right = right and checked.right is not False
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
