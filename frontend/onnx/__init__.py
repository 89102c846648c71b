"""ONNX models in: `load_model(path_or_bytes_or_proto)` gives a graph. May import `ir` and onnx."""
