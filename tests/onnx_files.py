"""ONNX files for tests: steps as text, with a head behind them; and what onnxruntime makes of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from camify.sources import resolve

C, SIDE = 4, 9


def weights(*shape: int, seed: int = 0, positive: bool = False) -> np.ndarray:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    return np.abs(values) + 0.5 if positive else values


def write(
    path, body, constants, *, opset=17, shape=("N", C, SIDE, SIDE), kind="float", head=True, result="v", version=8
):
    """A file whose steps are ``body``; behind ``result`` a matrix gives three logits, so that every number counts."""
    sides = ",".join(map(str, shape))
    graph = onnx.parser.parse_graph(f"g ({kind}[{sides}] x) => ({kind} {result}) {{ {body} }}")
    graph.output[0].type.tensor_type.ClearField("shape")
    constants = {name: np.asarray(value) for name, value in constants.items()}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version)
    if head:
        onnx.save(model, path)
        image = weights(1 if shape[0] == 1 else 2, *shape[1:])
        features = int(np.prod(runtime(path, image).shape[1:]))
        graph.initializer.append(numpy_helper.from_array(weights(3, features, seed=9) / 8, "head"))
        graph.initializer.append(numpy_helper.from_array(weights(3), "head_bias"))
        graph.node.extend([
            helper.make_node("Flatten", [result], ["features"]),
            helper.make_node("Gemm", ["features", "head", "head_bias"], ["logits"], transB=1),
        ])  # fmt: skip
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version)
    onnx.save(model, path)
    return path


def runtime(path, image, output=None):
    """What onnxruntime gives for an image as the file takes it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(output and [output], {session.get_inputs()[0].name: image})[0]


def require_equal(path, shape=(2, C, SIDE, SIDE), tolerance=2e-5):
    source = resolve(str(path))
    assert source.no_gradients == ""
    image = weights(*shape, seed=5)
    expected = runtime(path, image)
    with torch.no_grad():
        logits = source.model(torch.from_numpy(image)).numpy()
    assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()
    assert np.ptp(expected) > 0
    return source
