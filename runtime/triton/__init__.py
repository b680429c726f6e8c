"""Models of NVIDIA's Triton Inference Server, for its Python backend; written by `tool.py triton`.

Nothing here is imported outside a server: its stub gives the module `triton_python_backend_utils`.
"""
