"""ONNX helpers without torch: function bodies, passes, weights in external files."""
