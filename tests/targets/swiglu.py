"""What the release of onnxruntime that runs this makes of SwiGLU's gain and limit.

Prints JSON: of MoE and QMoE, the largest error against NumPy over the largest output, for a gain
and a limit that are not the published models', and what those of the published would be off by.
"""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

DOMAIN = "com.microsoft"
GAIN, LIMIT = 1.2, 0.8
TOKENS, SIZE, EXPERTS, CHOSEN = 16, 32, 4, 2  # hidden and intermediate are of one size, one block


def main() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(TOKENS, SIZE)).astype(np.float32)
    router = random.normal(size=(TOKENS, EXPERTS)).astype(np.float32)
    codes = [random.integers(0, 256, (EXPERTS, n, SIZE), dtype=np.uint8) for n in (2 * SIZE, SIZE)]
    scales = [np.full((EXPERTS, len(c[0]), 1), 1 / 256, np.float32) for c in codes]
    w1, w2 = ((c.astype(np.float32) - 128) * s for c, s in zip(codes, scales, strict=True))
    b1, b2 = (random.normal(size=w.shape[:2]).astype(np.float32) for w in (w1, w2))
    expected = reference(x, router, w1, b1, w2, b2)
    found = {
        "MoE": run("MoE", [x, router, w1, b1, w2, b2]),
        "QMoE": run(
            "QMoE",
            [x, router, codes[0], scales[0], b1, codes[1], scales[1], b2],
            expert_weight_bits=8,
            block_size=SIZE,
        ),
    }
    largest = np.abs(expected).max()
    errors = {name: float(np.abs(y - expected).max() / largest) for name, y in found.items()}
    other = reference(x, router, w1, b1, w2, b2, gain=1.702, limit=7.0)
    published = float(np.abs(other - expected).max() / largest)
    found = {"onnxruntime": onnxruntime.__version__, "errors": errors, "published": published}
    print(json.dumps(found))


def reference(
    x: np.ndarray,
    router: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
    gain: float = GAIN,
    limit: float = LIMIT,
) -> np.ndarray:
    """[T, H]"""
    out = np.zeros_like(x)
    for token, row in enumerate(x):
        best = np.argsort(-router[token])[:CHOSEN]
        shares = np.exp(router[token][best] - router[token].max())
        for expert, share in zip(best, shares / shares.sum(), strict=True):
            pairs = w1[expert] @ row + b1[expert]
            gate, up = np.minimum(pairs[::2], limit), np.clip(pairs[1::2], -limit, limit)
            inner = gate / (1 + np.exp(-gain * gate)) * (up + 1)
            out[token] += share * (w2[expert] @ inner + b2[expert])
    return out


def run(op: str, inputs: list[np.ndarray], **more: int) -> np.ndarray:
    names = [f"in{place}" for place in range(len(inputs))]
    node = helper.make_node(
        op,
        names,
        ["out"],
        domain=DOMAIN,
        k=CHOSEN,
        normalize_routing_weights=1,
        activation_type="swiglu",
        activation_alpha=GAIN,
        activation_beta=1.0,
        swiglu_limit=LIMIT,
        swiglu_fusion=1,
        **more,
    )
    graph = helper.make_graph(
        [node],
        op,
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [TOKENS, SIZE])],
        [numpy_helper.from_array(value, name) for name, value in zip(names, inputs, strict=True)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    return session.run(None, {})[0]


if __name__ == "__main__":
    main()
