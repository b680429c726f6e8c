"""Optional kernels for the CPU: a library of custom ops for ONNX Runtime, built from C++ here.

Graphs never need it. Their nodes have bodies in stock ops; where the library is there, ONNX Runtime
takes its kernels instead.
"""
