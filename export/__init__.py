"""Checkpoint to neutral ONNX graphs: reading, torch modules, tracing, writing."""
