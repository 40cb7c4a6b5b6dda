"""Float KV cache -> int8: GroupQueryAttention writes codes and computes with code * scale.

    GroupQueryAttention(qkv, past..., ...)  ->  GroupQueryAttention(qkv, past int8..., k, v scales)

A scale a channel of each KV head, fixed at export from the largest magnitude calibration saw;
what is larger saturates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_onnx.graph_passes.step import initializer
from gptoss_onnx.graph_passes.weight_role import WeightRole, role_of
from gptoss_onnx.runtimes.errors import UserError

Float32 = NDArray[np.float32]
_K_SCALE, _V_SCALE = 12, 13  # inputs of the operator
_LARGEST = 127


def kv_scale(role: WeightRole) -> str:
    """The name of the scales of a layer's keys or values."""
    return f"model.layers.{role.layer}.self_attn.{role.part}_scale"


@dataclass(frozen=True)
class QuantizeKv:
    """`kv_max`: "N.key" and "N.value" -> largest magnitudes [kv_heads, head_dim], after rotary."""

    kv_max: Mapping[str, Float32]

    def __call__(self, model: ir.Model) -> int:
        graph, count = model.graph, 0
        for node in graph:
            if node.op_type != "GroupQueryAttention":
                continue
            node.resize_inputs(max(len(node.inputs), _V_SCALE + 1))
            for place, scale_input in ((3, _K_SCALE), (4, _V_SCALE)):
                past, present = node.inputs[place], node.outputs[place - 2]
                assert past is not None
                role = role_of(past)
                scale = self._scale(role)
                name = kv_scale(role)
                node.replace_input_with(scale_input, initializer(graph, name, ir.Tensor(scale)))
                for value in (past, present):
                    value.type = ir.TensorType(ir.DataType.INT8)
            for name in ("k_quant_type", "v_quant_type"):
                node.attributes[name] = ir.AttrString(name, "PER_CHANNEL")
            node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
            count += 1
        return count

    def _scale(self, role: WeightRole) -> Float32:
        """float32 [1, kv_heads, 1, head_dim]."""
        layer, part = role.layer, role.part
        most = self.kv_max.get(f"{layer}.{part}")
        if most is None or not np.isfinite(most).all() or not most.any():
            raise UserError(
                f"calibration saw no {part}s of layer {layer} to scale an int8 KV cache by: "
                "give --calibrate a text with more in it"
            )
        if part == "key":
            # Rotary turns the pair (i, i + D/2) by the position: a later one than calibration had
            # may turn all of it into either channel.
            most = np.tile(np.hypot(*np.split(most, 2, axis=-1)), 2)
        most = np.maximum(most, most.max() / _LARGEST)  # a channel that was silent need not stay so
        return np.asarray(most / _LARGEST, np.float32)[None, :, None]
