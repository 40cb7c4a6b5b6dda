"""Which of a package's graphs a runtime takes: the rule that every language has.

Of the graphs that the runtime can run, the one made for the provider it ranks highest; of those the
one that asks most of the device; of those the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.kv_cache import KV_DTYPES

Entry = Mapping[str, Any]  # what a manifest says of one graph


@dataclass(frozen=True)
class Runtime:
    """What there is to run a graph with."""

    version: str
    providers: Sequence[str]  # ONNX Runtime's names; the one whose graphs suit it best first
    features: frozenset[str] = frozenset()  # of the device, as WebGPU names them
    kv: Sequence[str] = KV_DTYPES  # element types of the KV caches it keeps
    appends: bool = True  # runs graphs that make the present anew (`in_place` false)

    @classmethod
    def here(cls) -> Runtime:
        """This process's ONNX Runtime, which lists its providers the fastest first."""
        return cls(onnxruntime.__version__, tuple(onnxruntime.get_available_providers()))

    def too_old(self, entry: Entry) -> str | None:
        """Why a graph needs a newer runtime; None where it does not."""
        if release(self.version) >= release(entry["min_runtime"]):
            return None
        return (
            f"needs onnxruntime {entry['min_runtime']} or newer, this is {self.version}; "
            "update it with pip install -U onnxruntime"
        )

    def refusal(self, entry: Entry) -> str | None:
        """Why a graph cannot run here; None where it can."""
        if old := self.too_old(entry):
            return old
        providers, kv = entry["session"]["providers"], entry["kv"]
        if not set(providers) & set(self.providers):
            return f"is made for {', '.join(providers)}; this onnxruntime has none of these"
        if missing := [name for name in entry.get("requires", ()) if name not in self.features]:
            return f"needs {', '.join(missing)}, which this device lacks"
        if kv["dtype"] not in self.kv:
            return f"has a KV cache of {kv['dtype']}; {', '.join(self.kv)} are supported"
        if not self.appends and not kv.get("in_place", True):
            return "makes its KV cache anew at every run (in_place is false): not supported"
        return None


def choose(entries: Sequence[Entry], runtime: Runtime) -> Entry:
    """The graph to run, out of at least one; UserError says why the first cannot where none can."""
    refusals = [runtime.refusal(entry) for entry in entries]
    fit = [entry for entry, why in zip(entries, refusals, strict=True) if why is None]
    if not fit:
        raise UserError(f"{entries[0]['graph']} {refusals[0]}")

    def rank(entry: Entry) -> tuple[int, int]:
        first, ranked = entry["session"]["providers"][0], list(runtime.providers)
        # Made for another, but runs: behind all that is made for this one.
        place = ranked.index(first) if first in ranked else len(ranked)
        return place, -len(entry.get("requires", ()))

    return min(fit, key=rank)  # the first of equals


def release(version: str) -> tuple[int, int, int, int]:
    """Leading numbers of a version: 1.32.0.dev1 and 1.32.0-dev.1 are (1, 32, 0, 0)."""
    numbers = []
    for part in re.split(r"[-+]", version)[0].split("."):
        if not re.fullmatch(r"[0-9]+", part):
            break
        numbers.append(int(part))
    first, second, third, fourth, *_ = (*numbers, 0, 0, 0, 0)
    return first, second, third, fourth
