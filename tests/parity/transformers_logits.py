"""Logits of transformers' GPT-OSS in float32: FOLDER and OUT.npz, rows of ids as JSON on stdin.

Imports nothing of ours, so that it runs wherever a transformers is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GptOssForCausalLM


def logits(
    folder: Path | str, rows: Sequence[Sequence[int]], masks: Sequence[Any] | None = None
) -> list[NDArray[np.float32]]:
    """[length, V] of each row, alone and unpadded; `masks` are each row's, None for its own."""
    model = GptOssForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model = model.float().eval()
    with torch.no_grad():
        return [
            model(torch.tensor(list(row))[None], attention_mask=mask).logits[0].numpy()
            for row, mask in zip(rows, masks or [None] * len(rows), strict=True)
        ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez(sys.argv[2], *logits(sys.argv[1], json.load(sys.stdin)))
