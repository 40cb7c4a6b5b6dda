"""Which layers' KV caches keep a window: by what attention sees and what the kernel can."""

from __future__ import annotations

import pytest

from gptoss_onnx.graph_passes.attention_spec import AttentionSpec, is_fused, kv_windows
from gptoss_onnx.runtimes.target import get_target, load_targets

FULL, SLIDING, GLOBAL = AttentionSpec(None), AttentionSpec(16), AttentionSpec(16, 4)
CPU = get_target("cpu")


def test_a_layer_keeps_its_own_window() -> None:
    layers = (FULL, SLIDING, AttentionSpec(1024), FULL)
    assert kv_windows(layers, CPU) == (None, 16, 1024, None)


def test_a_layer_with_global_tokens_keeps_all_and_the_others_their_windows() -> None:
    assert kv_windows((GLOBAL, SLIDING, FULL), CPU) == (None, 16, None)


def test_whoever_concatenates_wants_all() -> None:
    assert kv_windows((SLIDING, FULL), CPU, full=True) == (None, None)


@pytest.mark.parametrize("name", load_targets())
def test_a_target_without_such_a_cache_keeps_all(name: str) -> None:
    target = get_target(name)
    kept = kv_windows((SLIDING, FULL), target)
    assert kept == ((16, None) if target.windowed_kv else (None, None))


def test_one_layer_with_global_tokens_is_enough_for_standard_operators() -> None:
    cuda = get_target("cuda")
    assert is_fused((SLIDING, FULL), cuda)
    assert not is_fused((SLIDING, GLOBAL), cuda)
    assert is_fused((SLIDING, GLOBAL), CPU)


def test_no_window_has_no_global_tokens() -> None:
    with pytest.raises(AssertionError):
        AttentionSpec(None, 4)
