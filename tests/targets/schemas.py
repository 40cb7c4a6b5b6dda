"""What this process's ONNX Runtime knows of Microsoft's operators, as JSON, by operator.

python tests/targets/schemas.py
"""

from __future__ import annotations

import json
from typing import Any

from onnxruntime.capi import onnxruntime_pybind11_state as state

DOMAIN, PROVIDER = "com.microsoft", "CPUExecutionProvider"


def schemas() -> dict[str, dict[str, Any]]:
    """Attributes, number of inputs, and the element types of the CPU's kernels."""
    types: dict[str, set[str]] = {}
    for kernel in state.get_all_opkernel_def():
        if (kernel.domain, kernel.provider) == (DOMAIN, PROVIDER):
            for allowed in kernel.type_constraints.values():
                types.setdefault(kernel.op_name, set()).update(map(str, allowed))
    return {
        schema.name: {
            "attributes": sorted(schema.attributes),
            "inputs": len(schema.inputs),
            "types": sorted(types.get(schema.name, ())),
        }
        for schema in state.get_all_operator_schema()
        if schema.domain == DOMAIN
    }


if __name__ == "__main__":
    print(json.dumps(schemas()))
