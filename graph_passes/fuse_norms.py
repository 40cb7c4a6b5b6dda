"""RMSNorm as one op, then with the residual sum before it.

Pow - ReduceMean - Add - Sqrt - Reciprocal - Mul - Mul  ->  SimplifiedLayerNormalization
Add(x, y), SimplifiedLayerNormalization                 ->  SkipSimplifiedLayerNormalization
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase, RewriteRuleSet


class FuseRMSNorm(RewriteRuleClassBase):
    def pattern(self, op: Any, x: Any, weight: Any, axes: Any, epsilon: Any) -> Any:
        mean = op.ReduceMean(op.Pow(x, 2.0), axes, _allow_other_attributes=True)
        scaled = op.Mul(x, op.Reciprocal(op.Sqrt(op.Add(mean, epsilon))))
        return op.Mul(weight, scaled)

    def check(self, context: Any, *_: Any, **matched: Any) -> MatchResult:
        weight, axes, epsilon = matched["weight"], matched["axes"], matched["epsilon"]
        result = MatchResult()
        found = ir.convenience.get_const_tensor(axes)
        if found is None or found.numpy().reshape(-1).tolist() != [-1]:
            return result.fail("the mean is not over the last axis alone", axes)
        if ir.convenience.get_const_tensor(epsilon) is None:
            return result.fail("epsilon is not a constant", epsilon)
        if not weight.is_initializer():
            return result.fail("the weight is computed", weight)
        return result

    def rewrite(self, op: Any, x: ir.Value, weight: ir.Value, epsilon: ir.Value, **_: Any) -> Any:
        constant = ir.convenience.get_const_tensor(epsilon)
        assert constant is not None
        return op.SimplifiedLayerNormalization(
            x, weight, axis=-1, epsilon=float(constant.numpy().item()), stash_type=1
        )


class FuseSkipRMSNorm(RewriteRuleClassBase):
    """The sum is read again by the next residual, so it is an output of the fused op."""

    def pattern(self, op: Any, x: Any, skip: Any, weight: Any, epsilon: Any) -> Any:
        total = op.Add(x, skip)
        norm = op.SimplifiedLayerNormalization(
            total, weight, epsilon=epsilon, _allow_other_attributes=True
        )
        return norm, total

    def rewrite(
        self, op: Any, x: ir.Value, skip: ir.Value, weight: ir.Value, epsilon: ir.Attr
    ) -> Any:
        norm, _, _, total = op.SkipSimplifiedLayerNormalization(
            x, skip, weight, epsilon=epsilon.as_float(), _domain="com.microsoft", _outputs=4
        )
        return norm, total


RMS_NORM = RewriteRuleSet([FuseRMSNorm.rule()])
SKIP_RMS_NORM = RewriteRuleSet([FuseSkipRMSNorm.rule()])
