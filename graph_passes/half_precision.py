"""Every float32 value of a target graph -> float16 or bfloat16; the last rewrite of a recipe.

    past (float32), W (float32) ... logits (float32)
        ->  past (half), W (half) ... Cast(to=FLOAT) - logits (float32)

Callers get float32 logits whatever the graph computes in. A weight is converted as it is written,
chunk by chunk; with `cast_weights` it stays float32 in the files, which a float32 graph then
shares, and the graph casts it: ONNX Runtime does that once, at load.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes.step import PassError
from gptoss_onnx.graph_passes.weight_role import carry_role
from gptoss_onnx.graph_passes.weights import Array, Part, StreamedTensor
from gptoss_onnx.runtimes.errors import UserError

FLOAT = ir.DataType.FLOAT
# Inputs whose type the operators' schemas fix at float32, by place.
_FIXED: dict[str, frozenset[int]] = {
    "GroupQueryAttention": frozenset({12, 13}),  # scales of an int8 KV cache
    "QMoE": frozenset({15, 16}),  # global scales of fp4 experts
}


@dataclass(frozen=True)
class HalfPrecision:
    """`dtype` is float16 or bfloat16. Gives 1: the logits' cast."""

    dtype: str
    cast_weights: bool = False

    def __call__(self, model: ir.Model) -> int:
        half = ir.DataType[self.dtype.upper()]
        graph = model.graph
        weights = _Weights(graph, half, self.cast_weights)
        for value in list(graph.initializers.values()):
            weights.convert(value)
        for value in graph.inputs:
            _retype(value, half)
        for node in graph.all_nodes():  # those of branches too
            if node.op_type == "Cast" and node.domain == "" and node not in weights.casts:
                if node.attributes.get_int("to") == FLOAT.value:
                    node.attributes["to"] = ir.AttrInt64("to", half.value)
            elif node.op_type in ("Constant", "ConstantOfShape"):
                _constant(node, half)
            if node not in weights.casts:
                for value in node.outputs:
                    _retype(value, half)
        return _float_logits(graph, half)


def _retype(value: ir.Value, half: ir.DataType) -> None:
    if value.dtype == FLOAT:
        value.type = ir.TensorType(half)


def _constant(node: ir.Node, half: ir.DataType) -> None:
    """A Constant's value; that of ConstantOfShape, whose default is a float32 zero."""
    given = node.attributes.get("value")
    if given is not None:
        array = given.as_tensor().numpy()
    elif node.op_type == "ConstantOfShape":
        array = np.zeros(1, np.float32)
    elif (number := node.attributes.get("value_float")) is not None:
        del node.attributes["value_float"]
        array = np.asarray(number.as_float(), np.float32)
    else:
        return  # integers
    if array.dtype == np.float32:
        tensor = ir.Tensor(_clamped(array, half), dtype=half)
        node.attributes["value"] = ir.AttrTensor("value", tensor)


def _float_logits(graph: ir.Graph, half: ir.DataType) -> int:
    """The one output that callers read as numbers leaves in float32."""
    for place, value in enumerate(graph.outputs):
        if value.name == "logits" and value.dtype == half:
            value.name = f"logits.{half.name.lower()}"
            cast = ir.node("Cast", [value], {"to": FLOAT.value}, name="logits.cast")
            last = cast.outputs[0]
            last.name, last.type, last.shape = "logits", ir.TensorType(FLOAT), value.shape
            graph.append(cast)
            graph.outputs[place] = last
            return 1
    return 0


class _Weights:
    """Converts initializers, each once; `casts` are the nodes it put over float32 ones."""

    def __init__(self, graph: ir.Graph, half: ir.DataType, cast: bool) -> None:
        self._graph, self._half, self._cast = graph, half, cast
        self._first = next(iter(graph))
        self._streams: dict[int, StreamedTensor] = {}  # what parts are parts of, by its id
        self.casts: set[ir.Node] = set()

    def convert(self, value: ir.Value) -> None:
        if value.dtype != FLOAT or not value.uses():
            return
        places = [place in _FIXED.get(user.op_type, ()) for user, place in value.uses()]
        if all(places):
            return
        if any(places):
            raise PassError(f"{value.name}: read as float32 by one operator, as half by another")
        tensor = value.const_value
        assert tensor is not None, f"{value.name} is bound to nothing"
        if self._cast and tensor.size > 1:  # the others lie in the graph, not in a shared file
            self._cast_node(value)
            return
        value.const_value = self._tensor(tensor, str(value.name))
        value.type = ir.TensorType(self._half)

    def _cast_node(self, value: ir.Value) -> None:
        cast = ir.node("Cast", [value], {"to": self._half.value}, name=f"{value.name}.cast")
        out = cast.outputs[0]
        out.name, out.type, out.shape = f"{value.name}.half", ir.TensorType(self._half), value.shape
        for user, place in tuple(value.uses()):
            if user is not cast:
                user.replace_input_with(place, out)
        self._graph.insert_before(self._first, cast)
        self.casts.add(cast)

    def _tensor(self, tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        made: ir.TensorProtocol
        if isinstance(tensor, Part):
            made = Part(self._stream(tensor.whole, name), tensor.index, tensor.shape.numpy())
        elif isinstance(tensor, StreamedTensor):
            made = self._stream(tensor, name)
        else:
            made = ir.Tensor(_clamped(tensor.numpy(), self._half), dtype=self._half)
        carry_role(tensor, made)
        made.name = name
        return made

    def _stream(self, source: StreamedTensor, name: str) -> StreamedTensor:
        if id(source) not in self._streams:

            def chunks() -> Iterator[Array]:
                return (_rounded(chunk, self._half, name) for chunk in source.chunks())

            made = StreamedTensor(chunks, self._half, source.shape.numpy(), str(source.name))
            carry_role(source, made)
            self._streams[id(source)] = made
        return self._streams[id(source)]


def _clamped(array: Array, half: ir.DataType) -> Array:
    """Constants such as a mask's -1e9: the largest number will do where an infinity would not."""
    most = float(ml_dtypes.finfo(half.numpy()).max)  # type: ignore[no-untyped-call]
    return np.clip(array, -most, most).astype(half.numpy())


def _rounded(chunk: Array, half: ir.DataType, name: str) -> Array:
    """Weights to the nearest half; UserError when one is too large to be a number there."""
    if half == ir.DataType.BFLOAT16:  # by bits: many times faster than its cast
        bits = np.ascontiguousarray(chunk, np.float32).view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = (bits + np.uint32(0x7FFF) + even) >> np.uint32(16)
        return rounded.astype(np.uint16).view(ml_dtypes.bfloat16)
    with np.errstate(over="ignore"):  # reported below, as an error
        rounded = chunk.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise UserError(
            f"{name}: holds {np.abs(chunk).max():.3g}, which float16 cannot; "
            "use --activations bfloat16"
        )
    return rounded
