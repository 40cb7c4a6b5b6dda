"""Is a package what it says? Bytes, kernels, a run; against its checkpoint, what it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_onnx.evaluation.verify import can_check_kernels, not_run, verify


@dataclass(frozen=True)
class Verified:
    """What was found out about a package."""

    problems: tuple[str, ...]  # a line each; none when everything checked is right
    kernels_checked: bool  # by the target's table: that needs one, and what an export needs
    providers_missing: tuple[str, ...]  # of graphs that cannot run here
    parity: Mapping[str, Any] | None  # how far from the checkpoint's full-precision graph


def verify_package(
    package: str | Path,
    against: str | Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Verified:
    """Check every byte, every kernel and a run of `package`; `against` its checkpoint, the numbers.

    `progress` is told the bytes read since the last call. UserError for what is no package, or not
    made from that checkpoint.

    >>> from gptoss_onnx import verify_package
    >>> verify_package("build/demo-cpu-int4").problems
    ()
    """
    folder = Path(package)
    if problems := verify(folder, progress):
        return Verified(tuple(problems), False, (), None)
    parity = None
    if against is not None:
        from gptoss_onnx.evaluation.against import compare  # torch

        parity = compare(folder, str(against))
    missing = tuple(sorted(set(not_run(folder).values())))
    return Verified((), can_check_kernels(folder), missing, parity)
