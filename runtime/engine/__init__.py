"""What runs the graphs: the protocol of all backends, and ONNX Runtime behind it."""
