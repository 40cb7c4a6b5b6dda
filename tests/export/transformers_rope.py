"""What the transformers that is here makes of a config: run with configs as JSON on stdin."""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import transformers
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

SIZES = ("head_dim", "num_key_value_heads", "num_experts_per_tok", "sliding_window", "layer_types")


def rope_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """Inverse frequencies, the scale of cosines and sines, and sizes; None where it refuses."""
    try:
        parsed = GptOssConfig.from_dict(copy.deepcopy(config))
        rope = GptOssRotaryEmbedding(parsed)
    except (KeyError, TypeError, ValueError):
        return None
    except Exception as error:  # huggingface_hub's of a field of another type
        if "Strict" not in type(error).__name__:
            raise
        return None
    sizes = {name: getattr(parsed, name) for name in SIZES}
    return {"inv_freq": rope.inv_freq.tolist(), "scale": rope.attention_scaling, **sizes}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    print(json.dumps([rope_of(config) for config in json.load(sys.stdin)]))
