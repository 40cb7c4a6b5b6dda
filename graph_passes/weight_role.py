"""What a weight or a KV tensor is to the model: its layer, group and part, beside the value.

A name is read once, where a graph is made (`export.trace`) or loaded (`load_portable`,
`load_graph`); passes ask the value, and what is made of a weight's tensor carries its role on.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir

from gptoss_onnx.graph_passes.step import PassError

_KEY = "gptoss.role"  # in `meta`, which no file keeps
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]*)\.(.+)")
_KV = re.compile(r"(?:past_key_values|present)\.(0|[1-9][0-9]*)\.(key|value)")
# Module and leaf of a name: group, part and whether it is a bias.
_OUTSIDE = {
    ("model", "embed_tokens.weight"): ("embedding", "weight", False),
    ("model", "norm.weight"): ("norm", "last", False),
    ("", "lm_head.weight"): ("lm_head", "weight", False),
    ("", "cos_cache"): ("rope", "cos", False),
    ("", "sin_cache"): ("rope", "sin", False),
}
_INSIDE = {
    ("", "input_layernorm.weight"): ("norm", "input", False),
    ("", "post_attention_layernorm.weight"): ("norm", "post_attention", False),
    **{
        ("self_attn", f"{part}_proj.{kind}"): (group, part, kind == "bias")
        for part, group in (("q", "qkv"), ("k", "qkv"), ("v", "qkv"), ("o", "o"))
        for kind in ("weight", "bias")
    },
    ("self_attn", "sinks"): ("sinks", "weight", False),
    ("mlp", "router.weight"): ("router", "weight", False),
    ("mlp", "router.bias"): ("router", "weight", True),
    **{
        ("mlp.experts", f"{part}_proj{suffix}"): ("experts", part, bool(suffix))
        for part in ("gate_up", "down")
        for suffix in ("", "_bias")
    },
}


@dataclass(frozen=True)
class WeightRole:
    """`layer` is None outside the layers. Groups are those of `quantization.GROUPS`, and norm,
    router, sinks, rope and kv, which are never quantized by group; parts are q, k, v, o, gate_up,
    down, key, value and the like."""

    layer: int | None
    group: str
    part: str
    is_bias: bool = False

    @property
    def module(self) -> str:
        """The name of the module whose weight it is, as model.layers.0.self_attn."""
        prefix = "" if self.layer is None else f"model.layers.{self.layer}"
        return ".".join(filter(None, (prefix, self._place[0])))

    @property
    def leaf(self) -> str:
        """What follows the module in the name, as gate_up_proj."""
        return self._place[1]

    @property
    def name(self) -> str:
        """The published name of the weight."""
        return ".".join(filter(None, (self.module, self.leaf)))

    @property
    def _place(self) -> tuple[str, str]:
        table = _OUTSIDE if self.layer is None else _INSIDE
        wanted = (self.group, self.part, self.is_bias)
        found = next((place for place, what in table.items() if what == wanted), None)
        if found is None:
            raise PassError(f"{self}: no weight of the model, so it has no name")
        return found


def find_role(name: str) -> WeightRole | None:
    """The role that a published name, or that of a KV tensor, says; None for any other name."""
    if match := _KV.fullmatch(name):
        return WeightRole(int(match[1]), "kv", match[2])
    inside = _LAYER.fullmatch(name)
    layer, rest = (int(inside[1]), inside[2]) if inside else (None, name)
    table = _INSIDE if inside else _OUTSIDE
    for place, (group, part, is_bias) in table.items():
        if ".".join(filter(None, place)) == rest:
            return WeightRole(layer, group, part, is_bias)
    return None


def read_role(name: str) -> WeightRole:
    """`find_role`; PassError for a name that says none."""
    role = find_role(name)
    if role is None:
        raise PassError(f"{name!r} is the name of no weight and no KV tensor of GPT-OSS")
    return role


class HasMeta(Protocol):
    """An `ir.Value` or a tensor."""

    @property
    def name(self) -> str | None: ...
    @property
    def meta(self) -> MutableMapping[str, Any]: ...


def give_role(thing: HasMeta, role: WeightRole) -> None:
    thing.meta[_KEY] = role


def known_role(thing: HasMeta) -> WeightRole | None:
    """The role given to a value or tensor; None for constants and what is computed."""
    role: WeightRole | None = thing.meta.get(_KEY)
    return role


def role_of(thing: HasMeta | None) -> WeightRole:
    """The role given to a value or tensor; PassError where it has none."""
    role = None if thing is None else known_role(thing)
    if role is None:
        raise PassError(f"{thing and thing.name}: has no role; it is no weight of the model")
    return role


def carry_role(source: ir.TensorProtocol, *made: ir.TensorProtocol) -> None:
    """Tensors made of a weight's are still that weight."""
    if (role := known_role(source)) is not None:
        for tensor in made:
            give_role(tensor, role)


def give_roles(graph: ir.Graph) -> None:
    """Roles to the weights and KV tensors of a graph, by their names.

    PassError for a weight without a value whose name says nothing: binding could not find it.
    """
    for value in (*graph.initializers.values(), *graph.inputs, *graph.outputs):
        name = str(value.name)
        unbound = value.is_initializer() and value.const_value is None
        role = read_role(name) if unbound else find_role(name)
        if role is not None:
            give_role(value, role)
