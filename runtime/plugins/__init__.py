"""TensorRT plugins that launch kernels compiled ahead of time; each engine carries its own."""
