"""MXFP4: against scalar arithmetic, exhaustive searches and ONNX Runtime's QMoE."""

import math
import tracemalloc

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from gptoss_onnx.graph_passes import mxfp4
from gptoss_onnx.graph_passes.blockwise import dequantize_blocks, quantize_blocks

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def random_mxfp4(*lead, low=100, high=150, seed=0):
    """Every byte and every scale in [low, high] alike: blocks [..., 16], scales [...]."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (*lead, 16), dtype=np.uint8)
    return blocks, rng.integers(low, high + 1, lead, dtype=np.uint8)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def relative_rms(values, weight):
    return np.linalg.norm(values - weight) / np.linalg.norm(weight)


def scalar_decode(blocks, scales):
    out = np.empty((*scales.shape, 32))
    for index in np.ndindex(out.shape):
        *group, i = index
        code = int(blocks[*group, i // 2]) >> 4 * (i % 2) & 15
        sign = -1.0 if code & 8 else 1.0
        out[index] = sign * E2M1[code & 7] * 2.0 ** (int(scales[*group]) - 127)
    return out.reshape(*scales.shape[:-1], -1)


def same_bits(a, b):
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def test_decode_is_the_scalar_one_and_exact():
    blocks, scales = random_mxfp4(2, 4, 5, low=0, high=252)
    blocks[0, 0, 0] = np.arange(16) * 17  # every code in both nibbles
    scales[0, 0, :3] = (0, 1, 252)
    values = mxfp4.decode(blocks, scales)
    reference = scalar_decode(blocks, scales)
    assert values.dtype == np.float32 and values.shape == (2, 4, 160)
    np.testing.assert_array_equal(values.astype(np.float64), reference)
    np.testing.assert_array_equal(np.signbit(values), np.signbit(reference))


def test_decode_at_the_ends_of_the_exponent():
    blocks = np.full((1, 16), 0x31, np.uint8)  # 0.5 and 1.5
    np.testing.assert_array_equal(
        mxfp4.decode(blocks, np.array([254], np.uint8))[:2], np.array([0.5, 1.5]) * 2.0**127
    )
    np.testing.assert_array_equal(
        mxfp4.decode(blocks, np.array([0], np.uint8))[:2], np.array([0.5, 1.5]) * 2.0**-127
    )
    blocks[0, 3] = 0x40  # 2.0
    with pytest.raises(ValueError, match="beyond float32"):
        mxfp4.decode(blocks, np.array([254], np.uint8))
    convert = (mxfp4.decode, mxfp4.to_int8, mxfp4.to_int4)
    for function in convert:
        with pytest.raises(ValueError, match="NaN"):
            function(blocks, np.array([255], np.uint8))


def test_encode_gives_back_what_was_mxfp4():
    for low, high in ((0, 4), (100, 150), (240, 252)):
        blocks, scales = random_mxfp4(20, 6, low=low, high=high)
        small = blocks[:10]
        small &= np.uint8(0x99)  # only 0 and 0.5: the exponent is found elsewhere
        blocks[10:13] &= np.uint8(0xBB)  # up to 1.5
        blocks[13] &= np.uint8(0x88)  # zeros of both signs
        values = mxfp4.decode(blocks, scales)
        assert same_bits(mxfp4.decode(*mxfp4.encode(values)), values)


def test_encode_rounds_half_to_the_even_code():
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    codes = [0, 2, 2, 4, 4, 6, 6]
    weight = np.full(32, 6.0, np.float32)
    weight[:7], weight[7:14] = ties, np.negative(ties)
    blocks, scales = mxfp4.encode(weight)
    assert scales.tolist() == [127]
    nibbles = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(-1)
    assert nibbles[:7].tolist() == codes
    assert nibbles[7:14].tolist() == [code | 8 for code in codes]
    assert (nibbles[14:] == 7).all()


@pytest.mark.parametrize("scale", [1.0, 2.0**-30, 2.0**40])
def test_encode_has_the_least_error_of_all_exponents(scale):
    # Blocks of differing spread, so that each of the three exponents wins somewhere.
    weight = gaussian(60, 64) * np.float32(scale)
    weight[20:40] = np.sign(weight[20:40]) * np.float32(0.26 * scale)
    weight[20:40, ::32] = np.float32(4.2 * scale)
    weight[40:] = np.float32(7.9 * scale)
    blocks, scales = mxfp4.encode(weight)
    units = weight.reshape(-1, 32).astype(np.float64)
    errors = ((mxfp4.decode(blocks, scales).reshape(-1, 32) - units) ** 2).sum(axis=1)
    grid = np.array(sorted({-v for v in E2M1} | set(E2M1)))
    best = np.full(len(units), np.inf)
    for exponent in range(int(math.log2(scale)) - 12, int(math.log2(scale)) + 6):
        points = grid * 2.0**exponent
        nearest = np.abs(units[..., None] - points).min(axis=-1)
        best = np.minimum(best, (nearest**2).sum(axis=1))
    np.testing.assert_allclose(errors, best, rtol=1e-5)
    floor = np.floor(np.log2(np.abs(units).max(axis=1))) - 2 + 127
    assert set(np.unique(scales.reshape(-1) - floor)) == {-1, 0, 1}


def test_encode_at_the_ends_of_float32():
    weight = np.zeros((3, 32), np.float32)
    weight[0, 0] = np.finfo(np.float32).max
    weight[1, 0] = np.finfo(np.float32).smallest_subnormal
    # 7.2 is better as 8 = 4 * 2 than as 6, also where there is no exponent below to compare with.
    sevens = np.full(32, 7.2, np.float32)
    assert mxfp4.encode(sevens)[1].tolist() == [128]
    assert mxfp4.encode(np.ldexp(sevens, -127))[1].tolist() == [1]
    values = mxfp4.decode(*mxfp4.encode(weight))
    assert values[0, 0] == 6 * 2.0**125  # saturates rather than overflow
    assert values[1, 0] in (0, 2.0**-128) and not values[2].any()


def test_to_int8_is_exact():
    blocks, scales = random_mxfp4(3, 5, 4, low=0, high=252)
    blocks[0, 0, 0] = np.arange(16) * 17
    packed, halves = mxfp4.to_int8(blocks, scales)
    assert packed.shape == (3, 5, 128) and halves.shape == (3, 5, 4)
    assert packed.min() == 116 and packed.max() == 140
    np.testing.assert_array_equal(
        dequantize_blocks(packed, halves, 8, 32, 128), mxfp4.decode(blocks, scales)
    )


def least_error(blocks_of_codes):
    """Least squared int4 error of each row over a fine grid of scales, rounding to the nearest."""
    best = np.full(len(blocks_of_codes), np.inf)
    for scale in np.linspace(0.4, 1.3, 600):
        for signed in (scale, -scale):
            q = np.clip(np.rint(blocks_of_codes / signed), -8, 7)
            square = np.maximum((q * q).sum(axis=1), 1)
            refit = (blocks_of_codes * q).sum(axis=1) / square
            error = ((blocks_of_codes - refit[:, None] * q) ** 2).sum(axis=1)
            best = np.minimum(best, error)
    return best


@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("source", ["gaussian", "any codes", "small codes"])
def test_to_int4_has_the_least_error_of_all_scales(block, source):
    if source == "gaussian":
        blocks, scales = mxfp4.encode(gaussian(20, 960))
    else:
        blocks, scales = random_mxfp4(20, 30)
        if source == "small codes":
            blocks &= np.random.default_rng(1).choice(np.array([0x99, 0xBB, 0xDD], np.uint8), 16)
    packed, out = mxfp4.to_int4(blocks, scales, block)
    assert packed.shape == (20, 480) and out.shape == (20, 960 // block)
    power = np.repeat(np.ldexp(1.0, scales.astype(int) - 127), 32 // block, axis=1)[..., None]
    values = mxfp4.decode(blocks, scales).reshape(20, -1, block) / power
    got = dequantize_blocks(packed, out, 4, block, 960).reshape(20, -1, block) / power
    errors = ((got - values) ** 2).sum(axis=2).reshape(-1)
    best = least_error(values.reshape(-1, block))
    assert (errors <= best * (1 + 1e-5) + 1e-9).all()


def test_to_int4_is_exact_where_an_int4_scale_exists():
    def check(codes):
        blocks = np.asarray(codes, np.uint8).reshape(-1, 16)
        scales = np.full(len(blocks), 120, np.uint8)
        for block in (16, 32):
            packed, out = mxfp4.to_int4(blocks, scales, block)
            values = dequantize_blocks(packed, out, 4, block, len(blocks) * 32)
            np.testing.assert_array_equal(values, mxfp4.decode(blocks, scales))

    rng = np.random.default_rng(0)
    up_to_3, up_to_4 = rng.integers(0, 6, (40, 32)), rng.integers(0, 7, (40, 32))
    signs = 8 * rng.integers(0, 2, (40, 32))
    for low in (
        up_to_3 + signs,  # codes within +-7 at half the power
        np.where(up_to_4 == 6, up_to_4, up_to_4 % 6 + signs),  # 4 only above zero: a negative scale
        np.where(up_to_4 == 6, up_to_4 + 8, up_to_4 % 6 + signs),  # 4 only below zero
        np.array([0, 2, 4, 5, 6, 7])[up_to_3] + signs,  # integers: the power itself
        np.zeros((40, 32), np.int64) + signs,  # zeros of both signs
    ):
        check(low[:, 0::2] | low[:, 1::2] << 4)


@pytest.mark.parametrize(("block", "bar"), [(16, 0.047), (32, 0.062), (64, 0.077), (128, 0.091)])
def test_to_int4_error_on_gaussian_weights(block, bar):
    blocks, scales = mxfp4.encode(gaussian(200, 2560))
    values = mxfp4.decode(blocks, scales)
    packed, out = mxfp4.to_int4(blocks, scales, block)
    assert packed.shape == (200, 1280) and out.shape == (200, 2560 // block)
    error = relative_rms(dequantize_blocks(packed, out, 4, block, 2560), values)
    assert error < bar
    if block >= 64:
        for got, want in zip((packed, out), quantize_blocks(values, 4, block), strict=True):
            np.testing.assert_array_equal(got, want)


def test_to_int4_pads_a_last_block_wider_than_what_is_left():
    blocks, scales = random_mxfp4(3, 5)
    packed, out = mxfp4.to_int4(blocks, scales, 128)
    assert packed.shape == (3, 128) and out.shape == (3, 2)
    assert relative_rms(dequantize_blocks(packed, out, 4, 128, 160)[:, 128:],
                        mxfp4.decode(blocks, scales)[:, 128:]) < 0.2  # fmt: skip


@pytest.mark.parametrize("block", [16, 32, 64])
def test_tiles_views_and_read_only_arrays_do_not_show(monkeypatch, block):
    blocks, scales = random_mxfp4(3, 8, 6)

    def all_of(blocks, scales):
        values = mxfp4.decode(blocks, scales)
        return [
            values,
            *mxfp4.to_int8(blocks, scales),
            *mxfp4.to_int4(blocks, scales, block),
            *mxfp4.encode(values),
        ]

    expected = all_of(blocks, scales)
    frozen = blocks.copy(), scales.copy()
    for array in frozen:
        array.flags.writeable = False
    spread = np.repeat(blocks, 2, axis=1)[:, ::2], np.repeat(scales, 2, axis=1)[:, ::2]
    turned = (
        np.ascontiguousarray(blocks.transpose(2, 1, 0, 3)).transpose(2, 1, 0, 3),
        np.ascontiguousarray(scales.T).T,
    )
    for tile in (32, 320, 1 << 17):
        monkeypatch.setattr(mxfp4, "TILE", tile)
        for view in (frozen, spread, turned, (spread[0], scales), (blocks, turned[1])):
            for got, want in zip(all_of(*view), expected, strict=True):
                np.testing.assert_array_equal(got, want)
    for got, want in zip(all_of(blocks[0, 0], scales[0, 0]), expected, strict=True):
        np.testing.assert_array_equal(got, want[0, 0])
    assert mxfp4.decode(blocks[:0], scales[:0]).shape == (0, 8, 192)
    assert mxfp4.to_int8(blocks[:0], scales[:0])[0].shape == (0, 8, 192)
    assert mxfp4.to_int4(blocks[:0], scales[:0], block)[0].shape == (0, 8, 96)


def test_encode_takes_bfloat16():
    narrow = gaussian(4, 64).astype(ml_dtypes.bfloat16)
    for got, want in zip(
        mxfp4.encode(narrow), mxfp4.encode(narrow.astype(np.float32)), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_transposed_codes_are_the_same_codes():
    packed = np.random.default_rng(5).integers(0, 256, (6, 16), dtype=np.uint8)  # [N, K/2]
    columns = mxfp4.transposed_codes(packed)
    assert columns.shape == (32, 3)
    for n in range(6):
        for k in range(32):
            stored = packed[n, k // 2] >> 4 * (k % 2) & 15
            assert columns[k, n // 2] >> 4 * (n % 2) & 15 == stored
    np.testing.assert_array_equal(mxfp4.transposed_codes(columns), packed)


@pytest.mark.parametrize("shape", [(3, 8), (8,), (2, 2, 8)])
def test_codes_that_cannot_be_transposed(shape):
    with pytest.raises(ValueError, match="not an even number of packed rows"):
        mxfp4.transposed_codes(np.zeros(shape, np.uint8))


def test_errors():
    for bad in (np.nan, np.inf, -np.inf):
        weight = gaussian(2, 64)
        weight[1, 40] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            mxfp4.encode(weight)
    with pytest.raises(ValueError, match="multiple of 32"):
        mxfp4.encode(gaussian(2, 33))
    with pytest.raises(TypeError, match="float64"):
        mxfp4.encode(np.zeros((2, 32)))
    blocks, scales = random_mxfp4(3, 4)
    for function in (mxfp4.decode, mxfp4.to_int8, mxfp4.to_int4):
        with pytest.raises(ValueError, match="by 16 bytes"):
            function(blocks, scales[:, :3])
        with pytest.raises(ValueError, match="uint8"):
            function(blocks, scales.astype(np.float32))
    for block in (0, 8, 48, -32):
        with pytest.raises(ValueError, match="block size"):
            mxfp4.to_int4(blocks, scales, block)


@pytest.mark.parametrize("block", [16, 32, 64])
def test_temporaries_are_bounded(block):
    blocks, scales = random_mxfp4(1024, 256)
    tracemalloc.start()
    packed, out = mxfp4.to_int4(blocks, scales, block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - packed.nbytes - out.nbytes < 16 << 20


EXPERTS, HIDDEN, INNER, TOP_K = 4, 64, 96, 2


def qmoe(x, router, weights, scales, extra, **attributes):
    """Run com.microsoft::QMoE on the CPU with weights and scales of fc1 and fc2."""
    inputs = ["x", "router", "w1", "s1", "", "w2", "s2", *[""] * 8, *extra]
    node = helper.make_node(
        "QMoE", inputs, ["y"], domain="com.microsoft", expert_weight_bits=4, k=TOP_K,
        swiglu_fusion=1, activation_type="swiglu", activation_alpha=1.702, activation_beta=1.0,
        swiglu_limit=7.0, normalize_routing_weights=1, **attributes,
    )  # fmt: skip
    initializers = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights, 1)]
    for i, scale in enumerate(scales, 1):
        if scale.dtype == np.uint8:
            tensor = helper.make_tensor(
                f"s{i}", TensorProto.FLOAT8E8M0, scale.shape, scale.tobytes(), raw=True
            )
        else:
            tensor = numpy_helper.from_array(scale, f"s{i}")
        initializers.append(tensor)
    initializers += [numpy_helper.from_array(value, name) for name, value in extra.items() if name]
    value_info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [
            value_info("x", TensorProto.FLOAT, [None, HIDDEN]),
            value_info("router", TensorProto.FLOAT, [None, EXPERTS]),
        ],
        [value_info("y", TensorProto.FLOAT, [None, HIDDEN])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x, "router": router})[0]


def experts(x, router, gate_up, down):
    """The same in float64: gate = even rows, up = odd rows; softmax over the k chosen."""
    out = np.zeros((len(x), HIDDEN))
    for token, logits in enumerate(router.astype(np.float64)):
        chosen = np.argsort(-logits)[:TOP_K]
        shares = np.exp(logits[chosen] - logits[chosen].max())
        for expert, share in zip(chosen, shares / shares.sum(), strict=True):
            both = gate_up[expert].astype(np.float64) @ x[token]
            gate, up = np.minimum(both[0::2], 7), np.clip(both[1::2], -7, 7)
            inner = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
            out[token] += share * (down[expert].astype(np.float64) @ inner)
    return out


@pytest.fixture(scope="module")
def layer():
    gate_up = mxfp4.encode(gaussian(EXPERTS, 2 * INNER, HIDDEN, seed=1) / 2)
    down = mxfp4.encode(gaussian(EXPERTS, HIDDEN, INNER, seed=2) / 10)
    x, router = gaussian(7, HIDDEN, seed=3), gaussian(7, EXPERTS, seed=4)
    return x, router, gate_up, down


def test_qmoe_fp4_reads_the_bytes_of_encode(layer):
    x, router, gate_up, down = layer
    ones = np.ones(EXPERTS, np.float32)
    y = qmoe(
        x,
        router,
        [blocks.reshape(*blocks.shape[:2], -1) for blocks, _ in (gate_up, down)],
        [scales for _, scales in (gate_up, down)],
        {"g1": ones, "g2": ones},
        quant_type="fp4",
        weights_prepacked=1,
        block_size=32,
    )
    reference = experts(x, router, mxfp4.decode(*gate_up), mxfp4.decode(*down))
    assert np.abs(reference).max() > 1
    # float32 sums of 64 and 96 products; a weight or scale out of place is off by about 1.
    np.testing.assert_allclose(y, reference, atol=1e-5)


@pytest.mark.parametrize("block", [16, 32])
def test_qmoe_int4_reads_the_bytes_of_to_int4(layer, block):
    x, router, gate_up, down = layer
    packed, scales, values = [], [], []
    for blocks, powers in (gate_up, down):
        weight, scale = mxfp4.to_int4(blocks, powers, block)
        assert (scale < 0).any()
        packed.append(weight)
        scales.append(scale)
        values.append(dequantize_blocks(weight, scale, 4, block, blocks.shape[2] * 32))
    y = qmoe(x, router, packed, scales, {}, block_size=block)
    np.testing.assert_allclose(y, experts(x, router, *values), atol=1e-5)
