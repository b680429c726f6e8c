"""Target `cuda`: ONNX Runtime's CUDA provider."""
