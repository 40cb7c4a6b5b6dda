"""One .ort file out of a graph and its data, for a runtime older than the one that writes it.

    model.onnx + model.onnx.data  ->  model.ort

ONNX Runtime writes it. Graph optimization stops at the level that depends on no processor, and
weights are not prepacked, so the file is for arm64 as much as for the machine that made it. Writing
spells out the default of every attribute, those of a later release too, which an older one refuses
to load: what the target's table does not know is taken out again. The graph had none of these
(`verify_target`), so they are defaults.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.ort_file import ort_nodes
from gptoss_onnx.runtimes.target import Target


def write_ort(graph: Path, ort: Path, target: Target) -> None:
    """Convert `graph` to `ort`; AssertionError when it holds a node that the target cannot run."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(ort)
    options.log_severity_level = 3
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(str(graph), options, providers=[target.provider])
    except Exception as error:  # ONNX Runtime's own errors share no narrower base
        raise UserError(f"{ort}: cannot be written: {str(error).splitlines()[0]}") from error
    with ort_nodes(ort, write=True) as nodes:
        for node in nodes:
            node.drop(
                name
                for name in node.attributes
                if not target.has_attribute(node.domain, node.op_type, name)
            )
            why = node.refusal(target)
            assert why is None, f"{node.name}: {why}"
