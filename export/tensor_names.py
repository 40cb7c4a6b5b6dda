"""Names that other tools give a checkpoint's tensors, as the published ones.

    base_model.model.model.layers.0..., _orig_mod.model..., model.language_model..., layers.0...
        -> model.layers.0...
    mlp.router.linear.weight                            -> mlp.router.weight         Unsloth
    mlp.experts.gate_up_projs.E.weight [2I, H]          -> mlp.experts.gate_up_proj  Unsloth
    mlp.experts.E.gate_proj.weight [I, H], up_proj      -> mlp.experts.gate_up_proj  llm-compressor
    mlp.experts.gate_proj.weight [E, I, H], up_proj     -> mlp.experts.gate_up_proj  MLX

Values are the same throughout: rows of gate and up take turns as published.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from gptoss_onnx.export.experts import ExpertPart, UnfusedBias, UnfusedExperts
from gptoss_onnx.export.safetensors_folder import TensorView, show
from gptoss_onnx.runtimes.errors import UserError

Stored = TensorView | UnfusedExperts | UnfusedBias
# Wrappers of torch, PEFT and multimodal models; no module of GPT-OSS has such a name.
_WRAPPERS = {
    "_orig_mod",  # torch.compile
    "module",  # DistributedDataParallel, DeepSpeed
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "base_model",  # PEFT
    "language_model",
}
_TOP = ("embed_tokens", "layers", "norm")
_EXPERTS = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(.+)")
_PIECES = (
    re.compile(r"(?P<module>gate_up|down)_projs\.(?P<expert>\d+)\.(?P<kind>weight|bias)"),
    re.compile(r"(?P<expert>\d+)\.(?P<module>gate|up|down)_proj\.(?P<kind>weight|bias)"),
    re.compile(r"(?P<module>gate|up|down)_proj\.(?P<kind>weight|bias)"),
)


def published_names(folder: Path, found: Mapping[str, TensorView]) -> dict[str, Stored]:
    """The tensors by their published names, unfused experts as one; UserError where two are one."""
    named: dict[str, TensorView] = {}
    for original, view in found.items():
        name = _unwrapped(original)
        if name in named:
            raise UserError(
                f"{folder}: {show(named[name].name)} and {show(original)} are both {show(name)}; "
                "save the model once, without wrappers"
            )
        named[name] = view
    return _fused(folder, named)


def _unwrapped(original: str) -> str:
    parts = [part for part in original.split(".") if part not in _WRAPPERS]
    while parts[:2] == ["model", "model"]:  # PEFT's base_model.model.model
        del parts[0]
    if parts[:2] == ["model", "lm_head"]:
        del parts[0]
    if parts and parts[0] in _TOP:
        parts.insert(0, "model")
    return ".".join(parts).replace(".mlp.router.linear.", ".mlp.router.")


def _fused(folder: Path, named: Mapping[str, TensorView]) -> dict[str, Stored]:
    kept: dict[str, Stored] = {}
    # By the published name, then by module: the parts of each expert.
    pieces: dict[str, dict[str, dict[int, ExpertPart]]] = defaultdict(lambda: defaultdict(dict))
    for name, view in named.items():
        inside = _EXPERTS.fullmatch(name)
        piece = inside and next(filter(None, (p.fullmatch(inside[2]) for p in _PIECES)), None)
        if not inside or not piece:
            kept[name] = view
            continue
        module = "down" if piece["module"] == "down" else "gate_up"
        suffix = "_bias" if piece["kind"] == "bias" else ""
        parts = pieces[f"{inside[1]}.{module}_proj{suffix}"][piece["module"]]
        if "expert" in piece.groupdict():
            parts[int(piece["expert"])] = ExpertPart(view)
        else:
            parts |= {index: ExpertPart(view, index) for index in range((*view.shape, 0)[0])}
    for name, modules in pieces.items():
        if name in kept:
            raise UserError(
                f"{folder}: {show(name)} is there, and so are parts of it; keep one form of it"
            )
        kept[name] = _unfused(folder, name, modules)
    return kept


def _unfused(folder: Path, name: str, modules: Mapping[str, Mapping[int, ExpertPart]]) -> Stored:
    order = [module for module in ("gate", "up", "gate_up", "down") if module in modules]
    count = max((max(parts, default=-1) + 1 for parts in modules.values()), default=0)
    if order not in (["gate", "up"], ["gate_up"], ["down"]):
        raise UserError(
            f"{folder}: of {show(name)} there is {' and '.join(order)} alone; get the whole "
            "checkpoint"
        )
    for module in order:
        absent = [expert for expert in range(count) if expert not in modules[module]]
        if absent or not count:
            raise UserError(
                f"{folder}: expert {absent[0] if absent else 0} of {show(name)} is missing "
                f"({module}_proj); get the whole checkpoint"
            )
    experts = tuple(tuple(modules[m][expert] for m in order) for expert in range(count))
    first = experts[0][0]
    for part in (part for parts in experts for part in parts):
        if (part.shape, part.view.dtype) != (first.shape, first.view.dtype):
            raise UserError(
                f"{part.view.file}: {show(part.view.name)} is {part.view.dtype} "
                f"{list(part.shape)}, {show(first.view.name)} {first.view.dtype} "
                f"{list(first.shape)}; experts of a layer are alike"
            )
    rank = 1 if name.endswith("_bias") else 2
    if len(first.shape) != rank:
        raise UserError(
            f"{first.view.file}: {show(first.view.name)} is {list(first.view.shape)}, which is "
            f"no {'bias' if rank == 1 else 'weight'} of an expert; get the checkpoint again"
        )
    return UnfusedBias(name, experts) if rank == 1 else UnfusedExperts(name, experts)
