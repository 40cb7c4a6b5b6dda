"""What is quantized to what: a format for each group of tensors, and the four presets.

The router, norms and attention sinks always stay in float and are no group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from runtimes.errors import UserError


@dataclass(frozen=True)
class Format:
    """float32, int<bits> in blocks of `block` along the input features, or MXFP4 (blocks of 32)."""

    kind: str  # "float" | "int" | "mxfp4"
    bits: int = 32
    block: int = 0

    def __str__(self) -> str:
        return {"float": "fp32", "mxfp4": "mxfp4"}.get(self.kind, f"int{self.bits}:{self.block}")

    @classmethod
    def parse(cls, text: str) -> Format:
        """From fp32, mxfp4, int8, int4, or with a block size as in int4:64."""
        if text == "fp32":
            return FP32
        if text == "mxfp4":
            return MXFP4
        match = re.fullmatch(r"int([48])(?::(16|32|64|128|256))?", text)
        if match is None:
            raise UserError(
                f"{text!r} is not a format; use fp32, mxfp4, int8 or int4, with a block size of "
                "16, 32, 64, 128 or 256 if you like, as in int4:64"
            )
        return cls("int", int(match[1]), int(match[2] or 32))


FP32 = Format("float")
MXFP4 = Format("mxfp4", 4, 32)
INT8 = Format("int", 8, 32)  # MXFP4's own blocks: holds its values exactly
INT8_64 = Format("int", 8, 64)  # half the scales: loads in 0.7 of the time, decodes no slower
INT4 = Format("int", 4, 32)


@dataclass(frozen=True)
class Quantization:
    """A named choice of format for each group of tensors."""

    name: str
    embedding: Format
    qkv: Format
    o: Format
    experts: Format
    lm_head: Format

    @classmethod
    def parse(cls, preset: str, changes: Iterable[str] = ()) -> Quantization:
        """A preset, changed by `group=format` texts such as `lm_head=int8:64`."""
        if preset not in PRESETS:
            raise UserError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
        chosen = PRESETS[preset]
        for change in changes:
            group, _, text = change.partition("=")
            if group not in cls.groups():
                raise UserError(f"{change!r}: write group=format, group {', '.join(cls.groups())}")
            form = Format.parse(text)
            if form.kind == "mxfp4" and group != "experts":
                raise UserError(f"{change!r}: only experts can be mxfp4")
            chosen = cls(**{**vars(chosen), group: form})
        return chosen

    @classmethod
    def groups(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls) if field.name != "name")

    def describe(self) -> dict[str, str]:
        """Group to format, as the manifest keeps it."""
        return {group: str(getattr(self, group)) for group in self.groups()}


def _all(name: str, form: Format) -> Quantization:
    return Quantization(name, form, form, form, form, form)


PRESETS = {
    "fp32": _all("fp32", FP32),
    "int8": replace(_all("int8", INT8_64), experts=INT8),
    "int4": _all("int4", INT4),
    "mxfp4": replace(_all("mxfp4", INT8_64), experts=MXFP4),
}
