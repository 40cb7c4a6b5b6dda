"""Fields of a config.json, each checked as it is read; absent ones have transformers' defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_onnx.export.safetensors_folder import show
from gptoss_onnx.runtimes.errors import UserError

MOST = (1 << 31) - 1  # kernels count in 32 bits
SMALLEST, LARGEST = 1e-30, 1e30  # float32 holds them and their inverse


def positive(
    table: Mapping[str, Any], key: str, default: int | None, *, least: int = 1, most: int = MOST
) -> int:
    """A whole number from `least` to `most`; None as default means that it must be there."""
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        upto = f" to {most}" if isinstance(value, int) and value > most else " on"
        raise UserError(
            f"config.json: {key} is {show(value)}, expected a whole number from {least}{upto}"
        )
    return value


def number(table: Mapping[str, Any], key: str, default: float | None) -> float:
    """A positive number that float32 holds."""
    value = table.get(key, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not SMALLEST <= value <= LARGEST:
        raise UserError(f"config.json: {key} is {show(value)}, expected a positive number")
    return float(value)


def flag(table: Mapping[str, Any], key: str, default: bool) -> bool:
    """true or false."""
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"config.json: {key} is {show(value)}, expected true or false")
    return value
