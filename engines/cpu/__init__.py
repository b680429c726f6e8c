"""Target `cpu`: the lowering for ONNX Runtime's CPU provider."""
