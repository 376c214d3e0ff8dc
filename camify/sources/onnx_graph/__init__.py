"""Foreign ONNX graphs: read, followed step by step into layers, compared with onnxruntime."""
