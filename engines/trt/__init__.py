"""TensorRT and TensorRT-RTX: an ONNX graph and its shapes in, a checked plan out."""
