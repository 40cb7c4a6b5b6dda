"""A target: what one runtime on one kind of machine can run, as a table, not booleans.

Passes ask the table, and `verify_target` refuses every node outside it. A new target is a new
file in `runtimes/targets/` with a `TARGET`; nothing else names it.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_onnx.runtimes.errors import UserError

# Places of GroupQueryAttention's inputs: what is added to scores, lengths of right-padded rows.
ATTENTION_BIAS, QUERY_SEQLENS = 10, 16
Attribute = frozenset[Any] | None  # the values a kernel takes; None is any


@dataclass(frozen=True)
class Kernel:
    """One operator of a runtime: element types it computes in and the attributes it knows."""

    dtypes: frozenset[str]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    inputs: int = sys.maxsize  # how many of the operator's inputs it reads; all, unless said
    min_inputs: int = 0  # how many it must be given
    absent: frozenset[int] = frozenset()  # places among those it reads that must stay empty

    def refusal(self, attributes: Mapping[str, Any], inputs: int) -> str | None:
        """Why the kernel cannot take a node of these attributes and inputs; None when it can."""
        for name, value in attributes.items():
            if name not in self.attributes:
                return f"attribute {name} is not known there"
            allowed = self.attributes[name]
            if allowed is not None and value not in allowed:
                return f"{name}={value} is not one of {sorted(allowed)}"
        if inputs > self.inputs:
            return f"{inputs} inputs where its kernel reads {self.inputs}"
        if inputs < self.min_inputs:
            return f"{inputs} inputs where its kernel wants {self.min_inputs}"
        return None


@dataclass(frozen=True)
class Target:
    """Everything that export, packages and loaders need to know about where a package runs."""

    name: str
    description: str
    provider: str  # ONNX Runtime's execution provider
    min_runtime: str  # oldest ONNX Runtime that its packages load on
    opset: int
    presets: tuple[str, ...]
    kernels: Mapping[tuple[str, str], Kernel]  # (domain, op)
    verified: str  # how its packages were checked
    activations: tuple[str, ...] = ("float32",)  # element types its graphs compute in, best first
    # What a device must have for a graph of that element type. Where any is named, a package holds
    # a graph for each element type and the loader chooses.
    device_features: Mapping[str, str] = field(default_factory=dict)
    # How experts of 4 or 8 bits run, and why so: "QMoE"; "routed", MatMulNBits over an expert's
    # tokens; "gathered", MatMulNBits over a token's experts.
    experts: str = "QMoE"
    experts_reason: str = ""
    weights_in_branches: bool = False  # it loads a branch's MatMulNBits only with its weights there
    fp4_by_column: bool = False  # its QMoE reads MXFP4 codes as [E, K, N/2], not as they are stored
    # Operators it has a kernel of that is not fit for this model, and why; none of `kernels`.
    unfit: Mapping[tuple[str, str], str] = field(default_factory=dict)
    unit_scale: bool = False  # its attention is faster where scores are multiplied by no scale
    windowed_kv: bool = False  # its attention keeps only the window of a sliding layer
    kv: str = "float"  # the KV cache unless another is asked for: "float" (as activations), "int8"
    max_data_bytes: int | None = None  # largest data file its loader takes
    ort_files: bool = False  # a graph with its weights is one .ort file where that file's size does
    session_config: Mapping[str, str] = field(default_factory=dict)
    provider_options: Mapping[str, str] = field(default_factory=dict)
    fallback: str | None = None  # provider of nodes that `provider` has no kernel for
    # x86 processor features without which a format of experts runs, but far too slowly to use.
    wanted_features: Mapping[str, str] = field(default_factory=dict)
    older: tuple[Target, ...] = ()  # what it is on older runtimes, the newest first

    def refusal(
        self, domain: str, op: str, attributes: Mapping[str, Any], inputs: int
    ) -> str | None:
        """Why a node cannot run here, in words; None when it can."""
        kernel = self.kernels.get((domain, op))
        if kernel is None:
            return f"{op} on {self.name}: {self.unfit.get((domain, op), 'no kernel')}"
        why = kernel.refusal(attributes, inputs)
        return None if why is None else f"{op} on {self.name}: {why}"

    def has_kernel(self, domain: str, op: str) -> bool:
        """Whether it has a kernel of that operator."""
        return (domain, op) in self.kernels

    def has_attribute(self, domain: str, op: str, name: str) -> bool:
        """Whether its kernel of that operator knows an attribute."""
        kernel = self.kernels.get((domain, op))
        return kernel is not None and name in kernel.attributes

    def reads_input(self, domain: str, op: str, place: int) -> bool:
        """Whether its kernel of that operator reads input number `place`."""
        kernel = self.kernels.get((domain, op))
        return kernel is not None and place < kernel.inputs

    def fuses_attention(self, num_global_tokens: int) -> bool:
        """Whether one kernel does the model's attention: global tokens are given it as a bias."""
        kernel = self.kernels.get(("com.microsoft", "GroupQueryAttention"))
        return kernel is not None and not (num_global_tokens and ATTENTION_BIAS in kernel.absent)

    @property
    def providers(self) -> list[str]:
        """Execution providers, the first choice first."""
        return [self.provider, *([self.fallback] if self.fallback else [])]

    @property
    def int8_kv(self) -> bool:
        """Whether its attention can keep the KV cache in 8 bits."""
        return self.has_attribute("com.microsoft", "GroupQueryAttention", "kv_cache_bit_width")

    @property
    def padded_batches(self) -> bool:
        """Whether rows of a batch may get different numbers of tokens at once.

        GroupQueryAttention must be told (its input 16); standard operators read the mask.
        """
        attention = ("com.microsoft", "GroupQueryAttention")
        return not self.has_kernel(*attention) or self.reads_input(*attention, QUERY_SEQLENS)

    def slow_here(self, experts: str) -> str | None:
        """Why experts of that format are slow on this machine, and what to do; None if not."""
        feature = self.wanted_features.get(experts)
        info = Path("/proc/cpuinfo")
        flags = info.read_text() if info.is_file() else ""
        if feature is None or "flags" not in flags or feature in flags.split():
            return None
        return (
            f"{experts} experts are slow here: their kernel wants {feature}, which this processor "
            "lacks; --quant int8 holds the same experts exactly, int4 is fastest"
        )


def load_targets() -> dict[str, Target]:
    """Every target by name; a target is found by its file being there."""
    folder = importlib.import_module("gptoss_onnx.runtimes.targets")
    names = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
    return {name: importlib.import_module(f"{folder.__name__}.{name}").TARGET for name in names}


def get_target(name: str, runtime: str | None = None) -> Target:
    """The target called `name`, as it is on that version of its runtime; None for the newest.

    UserError lists the targets or the versions there are.
    """
    targets = load_targets()
    if name not in targets:
        raise UserError(f"no target {name!r}; there are {', '.join(targets)}")
    known = (targets[name], *targets[name].older)
    try:
        fits = [t for t in known if not runtime or _release(t.min_runtime) <= _release(runtime)]
    except ValueError:
        raise UserError(f"{runtime!r} is no version of ONNX Runtime; write it as 1.24") from None
    if not fits:
        oldest = ", ".join(target.min_runtime for target in known)
        raise UserError(f"{name} on ONNX Runtime {runtime}: packages can be for {oldest} or newer")
    return fits[0]


def known_target(name: str, runtime: str) -> Target | None:
    """As `get_target`, for what a manifest says; None where there is no such table here."""
    with suppress(UserError):
        return get_target(name, runtime)
    return None


def _release(version: str) -> tuple[int, ...]:
    """1.24.3 is (1, 24): kernels come with minor releases."""
    return tuple(int(part) for part in version.split(".")[:2])
