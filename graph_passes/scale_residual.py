"""The residual stream at 1/32 of its size, where float16 holds it; what is computed stays the same.

    e = Gather(embedding, ids)                      e
    norm(e)                                         norm(e)
    skip_norm(e, Linear(x; o_proj))          ->     skip_norm(e / 32, Linear(x; o_proj / 32))
    skip_norm(sum, MoE(x; down_proj))               skip_norm(sum, MoE(x; down_proj / 32))

RMSNorm forgets the size of what it reads (its epsilon becomes 1/32^2 of itself) and powers of two
round nothing, so float32 gives the same bits; the first norm reads the embedding as it is.

gpt-oss-120b's stream passes 65,504, float16's largest number, in its last layers, and every logit
is NaN (microsoft/onnxruntime-genai#2444, ROCm/hip-ep#168; 333,824 in sgl-project/sglang#34473). A
kernel that keeps the mean square in float16 ends at one channel of 13,700 in 2,880 (DirectML:
microsoft/onnxruntime#17692; CUDA before 1.27: #29034). At 1/32 that is 440,000, and the least root
mean square whose square is no subnormal is 1/4: more would take from below what it gives above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from gptoss_onnx.graph_passes import mxfp4
from gptoss_onnx.graph_passes.step import output, shared_constant
from gptoss_onnx.graph_passes.weight_role import WeightRole, carry_role, known_role
from gptoss_onnx.graph_passes.weights import (
    ExpertSource,
    ExpertWeight,
    FloatWeight,
    scaled,
)

EXPONENT = -5
SCALE = 2.0**EXPONENT
RESIDUAL_SCALE = "residual_scale"  # the name of SCALE in graphs that have it
_NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")


def writes_residual(role: WeightRole) -> bool:
    """Whether a weight or bias writes to the residual stream in a layer."""
    return (role.group, role.part) in (("o", "o"), ("experts", "down"))


class ScaleResidual:
    """After the norms are fused, before all else. Gives how many addends: one and two a layer."""

    def __call__(self, model: ir.Model) -> int:
        graph, count = model.graph, 0
        for name, value in graph.initializers.items():
            role = known_role(value)  # constants have none
            if role is not None and writes_residual(role):
                value.const_value = _scaled(value.const_value)
                value.const_value.name = name
                count += not role.is_bias
        first, *later = (node for node in graph if node.op_type in _NORMS)
        embedding = first.inputs[0]
        assert embedding is not None
        addend = self._scaled_embedding(graph, embedding)
        for norm in later:
            epsilon = norm.attributes.get_float("epsilon")
            norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon * SCALE**2)
            for place, read in enumerate(norm.inputs[:2]):
                if read is embedding:
                    norm.replace_input_with(place, addend)
                    count += 1
        return count

    def _scaled_embedding(self, graph: ir.Graph, embedding: ir.Value) -> ir.Value:
        gather = embedding.producer()
        assert gather is not None
        scale = shared_constant(graph, RESIDUAL_SCALE, np.asarray(SCALE, np.float32))
        scaled = output("residual", ir.DataType.FLOAT, embedding.shape)
        graph.insert_after(gather, ir.node("Mul", [embedding, scale], outputs=[scaled]))
        return scaled


def _scaled(tensor: ir.TensorProtocol | None) -> FloatWeight | ExpertWeight:
    assert tensor is not None
    made: FloatWeight | ExpertWeight
    if isinstance(tensor, ExpertWeight):
        made = ExpertWeight(_ScaledExperts(tensor.source), tensor.to_float)
    else:
        made = scaled(tensor, SCALE)
    carry_role(tensor, made)
    return made


@dataclass(frozen=True)
class _ScaledExperts:
    """MXFP4 stays as it is but for its exponents."""

    source: ExpertSource

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    def read(self, expert: int) -> Any:
        stored = self.source.read(expert)
        if isinstance(stored, tuple):
            blocks, scales = stored
            return blocks, mxfp4.shifted(scales, EXPONENT)
        return stored * np.float32(SCALE)
