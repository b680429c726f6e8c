"""The engine of target `cpu`: ONNX Runtime on the CPU, cache in place."""
