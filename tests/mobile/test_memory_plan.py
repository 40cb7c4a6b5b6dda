"""The memory plan: its arithmetic, what a run takes, and what a refusal offers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.plan import Options
from gptoss_onnx.graph_passes.quantization import PRESETS
from gptoss_onnx.mobile.memory_plan import RUNTIME, check_memory, memory_plan
from gptoss_onnx.mobile.packaging import parse_size, plan_memory
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.target import get_target
from gptoss_onnx.tuning.tuning import Tuning, kv_of, tuned
from tests.conftest import DEMO, ROOT

pytestmark = pytest.mark.slow

ANDROID = get_target("android")
SPEC = open_checkpoint(str(DEMO)).spec
INT4, INT8 = PRESETS["int4"], PRESETS["int8"]
MEGABYTE = 1 << 20

# Loads a package and feeds chunks; prints the bytes that are no file's, before and after.
MEASURE = """
import json, sys
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])

package = Package.open(sys.argv[1], threads=1)
before = anonymous()
session = Session(package, max_length=2048)
for start in range(0, 1024, 64):
    session.feed(list(range(100, 164)))
    session.snapshot()
print(json.dumps([before, anonymous()]))
"""


def test_weights_are_those_of_the_package(android_onnx: Path) -> None:
    bytes_of = json.loads((android_onnx / "manifest.json").read_text())["weights"]
    written = sum(bytes_of[group] for group in ("embedding", "experts", "dense"))
    planned = memory_plan(SPEC, INT4, ANDROID).weights
    assert abs(planned - written) / written < 0.03
    wrong = replace(SPEC, num_experts=SPEC.num_experts - 1)  # the canary
    assert abs(memory_plan(wrong, INT4, ANDROID).weights - written) / written > 0.03


@pytest.mark.parametrize(("preset", "once"), [("int8", True), ("fp32", True), ("int4", False)])
def test_a_tied_weight_that_is_stored_once_is_counted_once(preset: str, once: bool) -> None:
    """int4's embedding is in 8 bits and its lm_head in 4."""
    quantization, cpu = PRESETS[preset], get_target("cpu")
    apart, tied = (
        memory_plan(replace(SPEC, tie_word_embeddings=tie), quantization, cpu)
        for tie in (False, True)
    )
    bits = {"int8": 8 + 32 / 64, "fp32": 32}.get(preset, 0)
    assert apart.weights - tied.weights == SPEC.vocab_size * SPEC.hidden_size * bits / 8 * once
    assert apart.packed == tied.packed  # the kernel's own copy is of lm_head alone


def test_kv_is_counted_by_layer_and_element() -> None:
    plan = memory_plan(SPEC, INT4, ANDROID, context=1000)
    row = 2 * SPEC.num_kv_heads * SPEC.head_dim
    assert plan.kv == "int8" and plan.kv_per_token == 3 * row  # the full layers
    assert SPEC.attention[0].window == 128 and plan.kv_fixed == 3 * row * 160 * (1 + 4)
    floats = memory_plan(SPEC, INT4, ANDROID, context=1000, kv="float")
    assert floats.kv_bytes == 4 * plan.kv_bytes
    older = memory_plan(SPEC, INT4, get_target("android", "1.27"), context=1000)
    assert older.kv_fixed == 0 and older.kv_per_token == 6 * row  # no windowed cache there


def test_an_ort_file_is_in_memory_while_it_loads() -> None:
    ort, onnx = (memory_plan(SPEC, INT4, ANDROID, file_format=f) for f in ("ort", "onnx"))
    running = onnx.kv_bytes + onnx.arena
    assert ort.needed - onnx.needed == max(2 * ort.weights, running) - running
    assert memory_plan(SPEC, INT4, ANDROID).file_format == "ort"
    small = replace(ANDROID, max_data_bytes=1_000_000)
    assert memory_plan(SPEC, INT4, small).file_format == "onnx"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
def test_a_run_takes_what_was_planned(android_onnx: Path) -> None:
    command = [sys.executable, "-c", MEASURE, str(android_onnx)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    before, after = json.loads(done.stdout)
    plan = memory_plan(SPEC, INT4, ANDROID, context=2048, file_format="onnx")
    # The constant for the runtime is the plan's only guess: Python's own growth is in it here.
    assert abs(after - before - plan.needed) < RUNTIME
    assert plan.packed + plan.kv_bytes + plan.arena < after - before + 4 * MEGABYTE


def test_a_refusal_says_what_would_fit() -> None:
    limit = memory_plan(SPEC, INT4, ANDROID, context=1024, file_format="onnx").needed
    with pytest.raises(UserError, match=r"what fits: --context 1024") as refused:
        check_memory(SPEC, INT4, ANDROID, limit, context=4096)
    assert "android: int4 needs" in str(refused.value) and "\n" not in str(refused.value)
    assert check_memory(SPEC, INT4, ANDROID, limit, context=1024).needed <= limit


def test_a_refusal_offers_int8_kv_and_int4() -> None:
    limit = memory_plan(SPEC, INT4, ANDROID, file_format="onnx").needed
    with pytest.raises(UserError, match=r"or --kv int8$"):
        check_memory(SPEC, INT4, ANDROID, limit, kv="float")
    with pytest.raises(UserError, match=r"--quant int4$"):
        check_memory(SPEC, INT8, ANDROID, limit)


def test_a_model_that_is_too_big_is_told_so() -> None:
    with pytest.raises(UserError, match="nothing of this model does: int4 with int8 KV at 512"):
        check_memory(SPEC, INT4, ANDROID, 20 * MEGABYTE)


def test_where_an_ort_file_would_not_fit_weights_are_mapped() -> None:
    limit = memory_plan(SPEC, INT4, ANDROID, file_format="ort").needed - 1
    assert check_memory(SPEC, INT4, ANDROID, limit).file_format == "onnx"
    assert check_memory(SPEC, INT4, ANDROID, limit + 1).file_format == "ort"


def test_sizes_and_targets_that_cannot_be_planned() -> None:
    assert parse_size("6GB") == 6_000_000_000 and parse_size("1.5GB") == 1_500_000_000
    for text in ("6", "6 GB", "-1GB", "0GB", "GB"):
        with pytest.raises(UserError, match="write a size as"):
            parse_size(text)
    cpu = Options(get_target("cpu"), INT4)
    assert plan_memory(SPEC, cpu, "float") is None
    with pytest.raises(UserError, match="cpu has no memory plan"):
        plan_memory(SPEC, cpu, "float", "6GB")
    with pytest.raises(UserError, match="--context: cpu has no memory plan"):
        plan_memory(SPEC, cpu, "float", context=1024)
    shorter = plan_memory(SPEC, Options(ANDROID, INT4), "int8", context=1024)
    assert shorter is not None and shorter.context == 1024


def test_a_phone_beside_other_targets_keeps_its_int8_cache(tmp_path: Path) -> None:
    """The plan says so; targets without such a cache must not take it from the phone."""
    checkpoint = open_checkpoint(str(DEMO))
    lines = (DEMO / "evaluation" / "calibration.jsonl").read_text("utf-8").splitlines()
    text = tmp_path / "calibration.jsonl"
    text.write_text("\n".join(lines[:2]) + "\n", "utf-8")
    others = (get_target("cpu"), get_target("web"))
    wanted = Options(others[0], INT4, also=(others[1], ANDROID))
    tuning = Tuning(text, method="rtn")
    assert kv_of(checkpoint, wanted, tuning) == "int8"
    with tuned(checkpoint, wanted, tuning, lambda *_: None) as made:
        assert made.options.kv_dtype(ANDROID, "float32") == "int8"
        assert {made.options.kv_dtype(other, "float32") for other in others} == {"float32"}
