"""required_operators.config: what a custom build of ONNX Runtime must have to run a graph.

Made by ONNX Runtime's own tool from the graph alone: its weights become inputs, which no operator
here minds, so a model of any size is read in a moment. Types are listed for
--enable_reduced_operator_type_support.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
from onnxruntime.tools.ort_format_model import create_config_from_models

from gptoss_onnx.mobile.ort_format import write_ort
from gptoss_onnx.runtimes.target import Target

CONFIG = "required_operators.config"


def write_required_operators(graph: Path, target: Target) -> Path:
    """Write it beside `graph`, a .onnx file; gives its path."""
    config = graph.with_name(CONFIG)
    with TemporaryDirectory() as temporary:
        bare = Path(temporary) / graph.name
        ir.save(_without_weights(ir.load(graph)), bare)
        ort = bare.with_suffix(".ort")
        write_ort(bare, ort, target)
        logging.disable(logging.INFO)  # the tool tells where it writes
        try:
            create_config_from_models([ort], config, True)
        finally:
            logging.disable(logging.NOTSET)
    lines = [line for line in config.read_text().splitlines() if not line.startswith("#")]
    title = f"# Operators of {graph.name}, for ONNX Runtime's --include_ops_by_config"
    config.write_text("\n".join([title, *lines, ""]))
    return config


def _without_weights(model: ir.Model) -> ir.Model:
    """Weights in data files, those of branches too, become inputs of the whole graph."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in list(graph.initializers.items()):
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = None
                del graph.initializers[name]
                model.graph.inputs.append(value)
    return model
