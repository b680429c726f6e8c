"""The engine protocol on ONNX Runtime's CUDA provider."""
