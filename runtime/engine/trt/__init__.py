"""The engine protocol on plans of TensorRT or TensorRT-RTX."""
