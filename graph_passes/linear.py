"""How a traced linear looks, and how one is written.

Transpose(weight [N, K]) - MatMul(x, .) - Add(., bias)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from gptoss_onnx.graph_passes.quantization import Format
from gptoss_onnx.graph_passes.quantize_rows import quantized_rows
from gptoss_onnx.graph_passes.rounding import Rounding
from gptoss_onnx.graph_passes.step import discard, initializer, output
from gptoss_onnx.graph_passes.weight_role import WeightRole, carry_role, role_of
from gptoss_onnx.graph_passes.weights import FloatWeight, transposed


@dataclass(frozen=True)
class Linear:
    """A linear in the traced form; `bias` and `add` are None where there is no bias."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    nodes: tuple[ir.Node, ...]  # Transpose, MatMul and, with a bias, Add

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    @property
    def role(self) -> WeightRole:
        return role_of(self.weight)

    @property
    def name(self) -> str:
        """The module's name: the weight's without its last part."""
        return str(self.weight.name).removesuffix(".weight")


def match(transpose: ir.Node) -> Linear | None:
    """The linear whose weight `transpose` turns; None when it is something else."""
    weight = transpose.inputs[0]
    users = transpose.outputs[0].consumers()
    if transpose.op_type != "Transpose" or weight is None or not weight.is_initializer():
        return None
    if len(users) != 1 or users[0].op_type != "MatMul":
        return None
    matmul = users[0]
    x, product = matmul.inputs[0], matmul.outputs[0]
    assert x is not None
    for user in product.consumers():
        others = [v for v in user.inputs if v is not product]
        if user.op_type == "Add" and len(others) == 1 and others[0] and others[0].is_initializer():
            return Linear(x, weight, others[0], (transpose, matmul, user))
    return Linear(x, weight, None, (transpose, matmul))


def linears(graph: ir.Graph) -> Iterator[Linear]:
    """Every traced linear, in graph order."""
    for node in list(graph):
        if node.op_type == "Transpose" and (found := match(node)) is not None:
            yield found


def remove(graph: ir.Graph, *gone: Linear) -> None:
    """Take linears and their weights out; what used their outputs has been rewired."""
    for linear in gone:
        graph.remove(reversed(linear.nodes), safe=True)
    for linear in gone:
        discard(graph, linear.weight, linear.bias)


def lowered(
    graph: ir.Graph,
    x: ir.Value,
    weight: FloatWeight,
    bias: FloatWeight | None,
    form: Format,
    rounding: Rounding,
    name: str,
    last: ir.Value,
) -> list[ir.Node]:
    """Nodes of a linear in `form` whose last output is `last`.

    fp32: MatMul over the weight stored transposed, Add. Blocks: MatMulNBits with the bias inside
    and int8 activations (accuracy_level 4: the kernels that run at the memory's speed).
    """
    rows, columns = weight.shape.numpy()
    bias_value = None if bias is None else initializer(graph, f"{name}.bias", bias)
    if form.kind == "float":
        turned = transposed(weight)
        carry_role(weight, turned)
        weight_value = initializer(graph, f"{name}.weight", turned)
        if bias_value is None:
            return [ir.node("MatMul", [x, weight_value], outputs=[last])]
        product = output(f"{name}.product", ir.DataType.FLOAT)
        return [
            ir.node("MatMul", [x, weight_value], outputs=[product]),
            ir.node("Add", [product, bias_value], outputs=[last]),
        ]
    pair = quantized_rows(weight, form, rounding.rounder(name, form))
    inputs: list[ir.Value | None] = [
        x,
        initializer(graph, f"{name}.weight_q{form.bits}", pair.packed),
        initializer(graph, f"{name}.scales", pair.scales),
    ]
    if bias_value is not None:
        inputs += [None, None, bias_value]  # no zero points: codes are symmetric; no g_idx
    attributes = {
        "N": rows,
        "K": columns,
        "bits": form.bits,
        "block_size": form.block,
        "accuracy_level": 4,
    }
    node = ir.node(
        "MatMulNBits", inputs, attributes, domain="com.microsoft", outputs=[last], name=name
    )
    return [node]
