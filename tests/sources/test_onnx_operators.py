"""Every ONNX operator that is read gives what onnxruntime gives, in every version and use that differs."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.onnx_files import SIDE, C, require_equal, weights, write

K = weights(5, C, 3, 3)
VEC = weights(C)
CASES = {
    "conv": ("v = Conv<pads=[1,1,1,1]>(x, w)", {"w": K}),
    "conv with bias, stride, dilation": (
        "v = Conv<strides=[2,1], dilations=[1,2]>(x, w, b)",
        {"w": K, "b": weights(5)},
    ),
    "conv in groups": ("v = Conv<group=2>(x, w)", {"w": weights(6, 2, 3, 3)}),
    "conv, padding of one side": ("v = Conv<pads=[0,0,1,1], strides=[2,2]>(x, w)", {"w": K}),
    "conv, same upper": ('v = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', {"w": weights(5, C, 4, 2)}),
    "conv, same lower": ('v = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)', {"w": weights(5, C, 4, 2)}),
    "conv, same, stride 1": ('v = Conv<auto_pad="SAME_UPPER">(x, w)', {"w": weights(5, C, 2, 4)}),
    "conv, valid": ('v = Conv<auto_pad="VALID">(x, w)', {"w": K}),
    "conv, then a bias in NHWC": (
        "c = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(c) v = Add(t, b)",
        {"w": K, "b": weights(5)},
    ),
    "conv, then a scale": ("c = Conv(x, w, b) v = Mul(c, s)", {"w": K, "b": weights(5), "s": weights(5, 1, 1)}),
    "conv, scaled for one of two readers": (
        "c = Conv(x, w) m = Mul(c, s) v = Sub(m, c)",
        {"w": K, "s": weights(5, 1, 1)},
    ),
    "conv transposed": ("v = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w)", {"w": weights(C, 3, 3, 3)}),
    "max pool": ("v = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", {}),
    "max pool, ceil": ("v = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", {}),
    "max pool, padding of one side": ("v = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]>(x)", {}),
    "max pool, same": ('v = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(x)', {}),
    "average pool": ("v = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", {}),
    "average pool that counts its padding": (
        "v = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(x)",
        {},
    ),
    "average pool, same": ('v = AveragePool<kernel_shape=[2,2], strides=[2,2], auto_pad="SAME_UPPER">(x)', {}),
    "average pool, padding of one side": ("v = AveragePool<kernel_shape=[2,2], pads=[0,0,1,1]>(x)", {}),
    "average pool, padding of one side, counted": (
        "v = AveragePool<kernel_shape=[2,2], pads=[0,0,1,1], count_include_pad=1>(x)",
        {},
    ),
    "average pool over the whole map": (f"v = AveragePool<kernel_shape=[{SIDE},{SIDE}]>(x)", {}),
    "global max pool": ("v = GlobalMaxPool(x)", {}),
    "batch norm": (
        "v = BatchNormalization<epsilon=0.01>(x, a, b, m, s)",
        {"a": VEC, "b": VEC * 2, "m": VEC / 2, "s": weights(C, positive=True)},
    ),
    "batch norm of a flattened NHWC map": (
        "t = Transpose<perm=[0,2,3,1]>(x) f = Flatten(t) v = BatchNormalization(f, a, b, m, s)",
        {name: weights(C * SIDE**2, seed=i, positive=name == "s") for i, name in enumerate("abms")},
    ),
    "instance norm": ("v = InstanceNormalization(x, a, b)", {"a": VEC, "b": VEC}),
    "group norm of old exports": (
        "r = Reshape(x, g) n = InstanceNormalization(r, one, zero) q = Reshape(n, back) m = Mul(q, a) v = Add(m, b)",
        {
            "g": [0, 2, -1],
            "one": np.ones(2, np.float32),
            "zero": np.zeros(2, np.float32),
            "back": [-1, C, SIDE, SIDE],
            "a": weights(C, 1, 1),
            "b": weights(C, 1, 1),
        },
    ),
    "layer norm": (
        "t = Transpose<perm=[0,2,3,1]>(x) v = LayerNormalization<epsilon=0.001>(t, a, b)",
        {"a": VEC, "b": VEC},
    ),
    "local response norm": ("v = LRN<size=3, alpha=0.1, beta=0.6, bias=2.0>(x)", {}),
    "leaky relu": ("v = LeakyRelu<alpha=0.2>(x)", {}),
    "elu": ("v = Elu<alpha=0.7>(x)", {}),
    "celu": ("v = Celu<alpha=0.7>(x)", {}),
    "selu": ("v = Selu(x)", {}),
    "prelu": ("v = PRelu(x, s)", {"s": weights(C, 1, 1)}),
    "prelu with one slope": ("v = PRelu(x, s)", {"s": weights(1)}),
    "hard sigmoid of ONNX": ("v = HardSigmoid(x)", {}),
    "hard sigmoid of torch": ("v = HardSigmoid<alpha=0.1666667>(x)", {}),
    "hard swish": ("v = HardSwish(x)", {}),
    "hard swish in steps": (
        "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) v = Div(m, six)",
        {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)},
    ),
    "silu in steps": ("s = Sigmoid(x) v = Mul(x, s)", {}),
    "silu whose gate is read twice": ("s = Sigmoid(x) m = Mul(x, s) v = Add(m, s)", {}),
    "gelu in steps": (
        "d = Div(x, r) e = Erf(d) a = Add(e, one) m = Mul(x, a) v = Mul(m, half)",
        {"r": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)},
    ),
    "layer norm in steps": (
        (
            "t = Transpose<perm=[0,2,3,1]>(x) m = ReduceMean<axes=[-1]>(t) c = Sub(t, m) q = Pow(c, two)"
            " w = ReduceMean<axes=[-1]>(q) e = Add(w, eps) d = Sqrt(e) n = Div(c, d) s = Mul(n, a) v = Add(s, b)"
        ),
        {"two": np.float32(2), "eps": np.float32(1e-5), "a": VEC, "b": VEC},
    ),
    "softplus, softsign, tanh": ("a = Softplus(x) b = Softsign(a) v = Tanh(b)", {}),
    "exp, log, abs, sqrt, reciprocal, neg": (
        "a = Abs(x) b = Add(a, one) c = Log(b) d = Sqrt(b) e = Reciprocal(b) f = Exp(e) g = Neg(f) v = Sum(c, d, g)",
        {"one": np.float32(1)},
    ),
    "clip from below": ("v = Clip(x, low)", {"low": np.float32(-0.3)}),
    "clip to zero": ("v = Clip(x, low)", {"low": np.float32(0)}),
    "clip on both sides": ("v = Clip(x, low, high)", {"low": np.float32(-0.3), "high": np.float32(0.8)}),
    "constants first": (
        "a = Sub(one, x) b = Mul(one, a) v = Div(b, two)",
        {"one": np.float32(1), "two": weights(C, 1, 1)},
    ),
    "a constant for every place": ("v = Sub(x, m)", {"m": weights(C, SIDE, SIDE)}),
    "max, min, mean": ("a = Neg(x) b = Max(x, a) c = Min(x, b) v = Mean(a, b, c)", {}),
    "powers": ("a = Abs(x) v = Pow(a, p)", {"p": np.float32(1.5)}),
    "concatenated in NHWC": (
        "t = Transpose<perm=[0,2,3,1]>(x) r = Relu(t) v = Concat<axis=3>(t, r)",
        {},
    ),
    "NHWC beside NCHW": ("t = Transpose<perm=[0,2,3,1]>(x) u = Transpose<perm=[0,3,1,2]>(t) v = Add(u, x)", {}),
    "other order added": ("t = Transpose<perm=[0,1,3,2]>(x) v = Sub(x, t)", {}),
    "split by sizes": ("a, b = Split<axis=1>(x, s) v = Concat<axis=1>(b, a)", {"s": [1, 3]}),
    "split evenly": ("a, b = Split<axis=1>(x) v = Sub(a, b)", {}),
    "sliced": ("v = Slice(x, s, e, a, t)", {"s": [1, 0], "e": [8, 1000], "a": [2, 3], "t": [2, 1]}),
    "channels reversed": ("v = Slice(x, s, e, a, t)", {"s": [-1], "e": [-1000], "a": [1], "t": [-1]}),
    "gathered in order": ("v = Gather<axis=1>(x, i)", {"i": [2, 0]}),
    "gathered backwards": ("v = Gather<axis=1>(x, i)", {"i": [3, 2, 1, 0]}),
    "one channel gathered": ("v = Gather<axis=1>(x, i)", {"i": np.int64(2)}),
    "padded": ("v = Pad(x, p, c)", {"p": [0, 0, 1, 0, 0, 0, 2, 1], "c": np.float32(0.5)}),
    "padded by reflection": ('v = Pad<mode="reflect">(x, p)', {"p": [0, 0, 1, 1, 0, 0, 1, 1]}),
    "channels padded": ("v = Pad(x, p)", {"p": [0, 1, 0, 0, 0, 2, 0, 0]}),
    "mean over the map": ("v = ReduceMean<axes=[2,3], keepdims=0>(x)", {}),
    "norm over channels": ("n = ReduceL2<axes=[1]>(x) v = Div(x, n)", {}),
    "largest, smallest, sum": (
        (
            "a = ReduceMax<axes=[1]>(x) b = ReduceMin<axes=[1]>(x) c = ReduceSum(x, i) d = ReduceL1<axes=[1]>(x)"
            " v = Concat<axis=1>(a, b, c, d)"
        ),
        {"i": [1]},
    ),
    "squeezed": ("p = GlobalAveragePool(x) v = Squeeze(p, a)", {"a": [2, 3]}),
    "squeezed without axes": ("p = GlobalAveragePool(x) v = Squeeze(p)", {}),
    "unsqueezed": ("p = GlobalAveragePool(x) s = Squeeze(p, a) u = Unsqueeze(s, a) v = Mul(x, u)", {"a": [2, 3]}),
    "NHWC gate": (
        "t = Transpose<perm=[0,2,3,1]>(x) m = ReduceMean<axes=[1,2], keepdims=0>(t) r = Reshape(m, s) v = Mul(t, r)",
        {"s": [-1, 1, 1, C]},
    ),
    "reshaped by the size of the batch": (
        "s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, axes) c = Concat<axis=0>(u, rest) v = Reshape(x, c)",
        {"zero": np.int64(0), "axes": [0], "rest": [-1]},
    ),
    "channel shuffle": (
        "r = Reshape(x, a) t = Transpose<perm=[0,2,1,3,4]>(r) v = Reshape(t, b)",
        {"a": [-1, 2, 2, SIDE, SIDE], "b": [-1, C, SIDE, SIDE]},
    ),
    "tiled": ("v = Tile(x, r)", {"r": [1, 2, 1, 1]}),
    "depth to space": ("v = DepthToSpace<blocksize=2>(x)", {}),
    "depth to space, columns first": ('v = DepthToSpace<blocksize=2, mode="CRD">(x)', {}),
    "resized": (
        'v = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)',
        {"s": np.float32([1, 1, 2, 2])},
    ),
    "resized, bilinear": ('v = Resize<mode="linear">(x, , s)', {"s": np.float32([1, 1, 2, 2])}),
    "matrix product with a token": (
        (
            "r = Reshape(x, s) t = Transpose<perm=[0,2,1]>(r) c = Concat<axis=1>(token, t) m = MatMul(c, w)"
            " p = Add(m, b) q = Gather<axis=1>(p, zero) v = Identity(q)"
        ),
        {"s": [1, C, SIDE**2], "token": weights(1, 1, C), "w": weights(C, 6), "b": weights(6), "zero": np.int64(0)},
    ),
    "attention": (
        "r = Reshape(x, s) t = Transpose<perm=[0,2,1]>(r) m = MatMul(t, r) w = Softmax<axis=-1>(m) v = MatMul(w, t)",
        {"s": [0, C, -1]},
    ),
    "einsum": ('v = Einsum<equation="nchw,dc->ndhw">(x, w)', {"w": weights(3, C)}),
    "dropout, casts": ("d = Dropout(x) c = Cast<to=10>(d) e = Cast<to=1>(x) v = Identity(e)", {}),
    "sizes of a constant branch": (
        (
            "s = Shape(x) c = Gather(s, one) e = Equal(c, four) v = If (e)"
            " <then_branch = t () => (float a) { a = Relu(x) },"
            " else_branch = f () => (float b) { b = Neg(x) }>"
        ),
        {"one": np.int64(1), "four": np.int64(C)},
    ),
    "expanded by the batch": (
        (
            "s = Shape(x) n = Slice(s, zero, one) c = Concat<axis=0>(n, rest) e = Expand(token, c)"
            " r = Reshape(x, flat) v = Concat<axis=1>(e, r)"
        ),
        {"zero": [0], "one": [1], "rest": [1, SIDE**2], "token": weights(1, 1, SIDE**2), "flat": [-1, C, SIDE**2]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_what_onnxruntime_makes_of_it(case, tmp_path):
    body, constants = CASES[case]
    shape = ("N", C, 8, 8) if "space" in case else ("N", C, SIDE, SIDE)
    shape = (1, *shape[1:]) if "token" in case and "batch" not in case else shape
    path = write(tmp_path / "case.onnx", body, constants, shape=shape)
    require_equal(path, (1 if shape[0] == 1 else 2, *shape[1:]))


OLD = {
    "clip before 11": (9, "v = Clip<min=-0.5, max=0.5>(x)", {}),
    "squeeze before 13": (9, "p = GlobalAveragePool(x) v = Squeeze<axes=[2,3]>(p)", {}),
    "unsqueeze before 13": (11, "m = ReduceMean<axes=[2,3], keepdims=0>(x) v = Unsqueeze<axes=[2]>(m)", {}),
    "pad before 11": (9, 'v = Pad<mode="constant", pads=[0,0,1,1,0,0,0,2], value=0.5>(x)', {}),
    "slice before 10": (9, "v = Slice<axes=[2], starts=[1], ends=[7]>(x)", {}),
    "split before 13": (11, "a, b = Split<axis=1, split=[1,3]>(x) v = Concat<axis=1>(b, a)", {}),
    "sum before 13": (11, "v = ReduceSum<axes=[1]>(x)", {}),
    "softmax over all before 13": (11, "v = Softmax<axis=1>(x)", {}),
    "softmax over one axis since 13": (13, "v = Softmax<axis=1>(x)", {}),
    "upsample": (9, 'v = Upsample<mode="nearest">(x, s)', {"s": np.float32([1, 1, 2, 2])}),
    "dropout before 12": (9, "v = Dropout<ratio=0.5>(x)", {}),
    "mean since 18": (18, "v = ReduceMean(x, a)", {"a": [2, 3]}),
    "split since 18": (18, "a, b = Split<axis=1, num_outputs=2>(x) v = Sub(a, b)", {}),
    "pad of some axes since 18": (18, "v = Pad(x, p, , a)", {"p": [1, 2], "a": [2]}),
    "gelu since 20": (20, 'v = Gelu<approximate="tanh">(x)', {}),
    "group norm since 21": (21, "v = GroupNormalization<num_groups=2>(x, a, b)", {"a": VEC, "b": VEC}),
    "attention since 23": (
        23,
        "r = Reshape(x, s) t = Transpose<perm=[0,1,3,2]>(r) k = Neg(t) v = Attention<scale=0.3>(t, k, t)",
        {"s": [-1, 2, 2, SIDE**2]},
    ),
    "mish since 18": (18, "v = Mish(x)", {}),
}


@pytest.mark.parametrize("case", OLD)
def test_every_version_of_an_operator_is_read_as_it_was_meant(case, tmp_path):
    opset, body, constants = OLD[case]
    require_equal(write(tmp_path / "case.onnx", body, constants, opset=opset, version=8 if opset < 20 else 10))
