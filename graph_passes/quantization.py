"""What is quantized to what: a format for each group of tensors, and the four presets.

The router, norms and attention sinks always stay in float and are no group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptoss_onnx.graph_passes.weight_role import WeightRole
from gptoss_onnx.runtimes.errors import UserError


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


GROUPS = ("embedding", "qkv", "o", "experts", "lm_head")
_LAYER_GROUP = re.compile(r"layers\.(\d+)\.(qkv|o|experts)")


def layer_key(layer: int, group: str) -> str:
    """What a recipe calls `group` in one layer."""
    return f"layers.{layer}.{group}"


def read_key(key: str) -> tuple[str, int | None] | None:
    """Group and layer that a recipe's key says; None for what is no key."""
    if key in GROUPS:
        return key, None
    match = _LAYER_GROUP.fullmatch(key)
    return (match[2], int(match[1])) if match else None


@dataclass(frozen=True)
class Quantization:
    """A named choice of format for each group of tensors, or for a group in one layer.

    Keys of `formats` are the groups, and `layers.N.group` where layer N differs from its group.
    """

    name: str
    formats: Mapping[str, Format]

    @classmethod
    def parse(cls, preset: str, changes: Iterable[str] = ()) -> Quantization:
        """A preset, changed by `key=format` texts: `lm_head=int8:64`, `layers.3.experts=int8`."""
        if preset not in PRESETS:
            raise UserError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
        texts = (change.partition("=") for change in changes)
        return PRESETS[preset].changed({key: text for key, _, text in texts})

    @classmethod
    def recorded(cls, preset: str, recipe: Mapping[str, str], where: Path | str) -> Quantization:
        """What a manifest at `where` says was done: its recipe names every group, and its preset
        completes one that was cut short. UserError names `where` and the field."""
        try:
            found = PRESETS.get(preset, cls(preset, {})).changed(recipe)
        except UserError as error:
            raise UserError(f"{where}: recipe has {error}") from None
        if missing := [group for group in GROUPS if group not in found.formats]:
            raise UserError(
                f"{where}: quant is {preset!r}, which is no preset here, and recipe does not say "
                f"what {missing[0]} is in; update this program, or export the package again"
            )
        return found

    def changed(self, recipe: Mapping[str, str]) -> Quantization:
        """This choice with the formats of `recipe`, as `describe` writes it, over its own."""
        formats = dict(self.formats)
        for key, text in recipe.items():
            known = read_key(key)
            if known is None:
                raise UserError(
                    f"{key + '=' + text!r}: write group=format, group {', '.join(GROUPS)}, or "
                    "layers.N.group for one layer's qkv, o or experts"
                )
            formats[key] = Format.parse(text)
            if formats[key].kind == "mxfp4" and known[0] != "experts":
                raise UserError(f"{key + '=' + text!r}: only experts can be mxfp4")
        return Quantization(self.name, formats)

    def of(self, group: str, layer: int | None = None) -> Format:
        """The format of `group`, in `layer` where the group is one of a layer's."""
        mine = None if layer is None else self.formats.get(layer_key(layer, group))
        return mine or self.formats[group]

    def of_role(self, role: WeightRole) -> Format:
        """The format of the weight that `role` says; float32 for what is no group."""
        return self.of(role.group, role.layer) if role.group in GROUPS else FP32

    def check_layers(self, num_layers: int) -> None:
        """UserError when a layer is named that a model of `num_layers` does not have."""
        for key in self.formats:
            _, layer = read_key(key) or (key, None)
            if layer is not None and layer >= num_layers:
                raise UserError(f"{key}: the model's layers are 0 to {num_layers - 1}")

    def describe(self) -> dict[str, str]:
        """Key to format, as the manifest keeps it."""
        return {key: str(form) for key, form in self.formats.items()}


def uniform(name: str, form: Format, **others: Format) -> Quantization:
    """One format for every group but `others`."""
    return Quantization(name, {**dict.fromkeys(GROUPS, form), **others})


PRESETS = {
    preset.name: preset
    for preset in (
        uniform("fp32", FP32),
        uniform("int8", INT8_64, experts=INT8),
        # A token reads one row of the embedding, so its bits cost no speed, and 2 % of 20B's size;
        # in 4 bits it alone is 40 % of the demo's divergence (benchmarks/README.md).
        uniform("int4", INT4, embedding=INT8_64),
        uniform("mxfp4", INT8_64, experts=MXFP4),
    )
}
