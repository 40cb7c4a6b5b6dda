"""What a phone's package is given beyond others: a memory plan, one .ort file, a build's needs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptoss_onnx.export.genai_config import GENAI_CONFIG
from gptoss_onnx.export.plan import Options
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.mobile.memory_plan import CONTEXT, MemoryPlan, check_memory
from gptoss_onnx.mobile.ort_format import write_ort
from gptoss_onnx.mobile.required_operators import write_required_operators
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.ort_file import ORT
from gptoss_onnx.runtimes.target import Target

Finish = Callable[[Path, dict[str, Any]], list[str]]


def plan_memory(
    spec: GptOssSpec,
    options: Options,
    kv: str,
    limit: str | None = None,
    context: int | None = None,
) -> MemoryPlan | None:
    """The plan of the first target that is a phone; None where none is.

    `limit` is a size as 6GB, `context` the tokens of the longest conversation. UserError when more
    is needed, or when there is nothing to plan.
    """
    target = _phone(options)
    if target is None:
        for name, value in (("--max-memory", limit), ("--context", context)):
            if value is not None:
                raise UserError(f"{name}: {options.target.name} has no memory plan; leave it out")
        return None
    files = "onnx" if options.also else None  # graphs that share weights read them from data files
    most = None if limit is None else parse_size(limit)
    tokens = CONTEXT if context is None else context
    return check_memory(
        spec, options.quantization, target, most, context=tokens, kv=kv, file_format=files
    )


def parse_size(text: str) -> int:
    """Bytes of 6GB or 800MB; UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(GB|MB)", text)
    if match is None or not float(match[1]):
        raise UserError(f"--max-memory {text}: write a size as 6GB or 800MB")
    return int(float(match[1]) * {"GB": 10**9, "MB": 10**6}[match[2]])


def finish(options: Options, plan: MemoryPlan | None) -> Finish | None:
    """The exporter's hook; None where nothing is to do."""
    target = _phone(options)
    if target is None or plan is None:
        return None

    def run(folder: Path, manifest: dict[str, Any]) -> list[str]:
        entries = manifest["graphs"] or [manifest]
        mine = next(entry for entry in entries if entry["target"] == target.name)
        made = [write_required_operators(folder / mine["graph"], target).name]
        if plan.file_format == "ort":
            made.append(_one_file(folder, manifest, target))
        return made

    return run


def _phone(options: Options) -> Target | None:
    return next((target for target in options.targets if target.ort_files), None)


def _one_file(folder: Path, manifest: dict[str, Any], target: Target) -> str:
    graph = folder / manifest["graph"]
    ort = graph.with_suffix(ORT)
    write_ort(graph, ort, target)
    for path in folder.glob(f"{graph.name}*"):
        path.unlink()
    manifest["graph"] = ort.name
    config = folder / GENAI_CONFIG
    if config.exists():
        content = json.loads(config.read_text(encoding="utf-8"))
        content["model"]["decoder"]["filename"] = ort.name
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return str(ort.name)
