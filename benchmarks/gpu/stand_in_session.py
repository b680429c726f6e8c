"""A session of ONNX Runtime's CUDA provider over stand-ins, and one step of a decoder recorded.

    python -m benchmarks.gpu.stand_in_session GRAPH [BATCH WINDOW]

Run by a Python that finds onnxruntime-gpu and the stand-ins first; what is told stands on stderr.
"""

import os
import sys
from collections.abc import Sequence
from math import prod

import numpy as np
import onnxruntime as ort

from runtime import names

_TYPES = {
    "tensor(float)": (1, 4),
    "tensor(float16)": (10, 2),
    "tensor(bfloat16)": (16, 2),
    "tensor(int32)": (6, 4),
    "tensor(int64)": (7, 8),
}
"""How ONNX numbers them, and their bytes."""
_ALIGNMENT = 256


def main(words: Sequence[str]) -> None:
    """Open a graph with the options of the engine's sessions; run a step if its sizes are given."""
    graph, *sizes = words
    session = _open(graph, talks=not sizes)
    if sizes:
        batch, window = map(int, sizes)
        _record(session, batch, window)
    sys.stderr.flush()
    os._exit(0)  # stand-ins are no libraries to unload in order


def _open(graph: str, *, talks: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if talks:
        options.log_severity_level = 0
        options.log_verbosity_level = 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", "0")
    wanted = {"use_tf32": "0", "enable_cuda_graph": "1"}
    providers = [("CUDAExecutionProvider", wanted), "CPUExecutionProvider"]
    session = ort.InferenceSession(graph, options, providers=providers)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        sys.exit("the provider did not load")
    return session


def _record(session: ort.InferenceSession, batch: int, window: int) -> None:
    """Run a step of one token in each slot; caches are read and written at the same addresses."""
    binding = session.io_binding()
    memory: dict[str, np.ndarray] = {}
    for is_input, values in ((True, session.get_inputs()), (False, session.get_outputs())):
        bind = binding.bind_input if is_input else binding.bind_output
        for one in values:
            shape = _shape(one.name, one.shape, batch, window)
            number, size = _TYPES[one.type]
            fed = next((name for name in memory if names.output_of(name) == one.name), one.name)
            if fed not in memory:
                memory[fed] = np.zeros(prod(shape) * size + _ALIGNMENT, dtype=np.uint8)
            address = -(-memory[fed].ctypes.data // _ALIGNMENT) * _ALIGNMENT
            bind(one.name, "cuda", 0, number, shape, address)
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "1")
    session.run_with_iobinding(binding, options)


def _shape(name: str, shape: Sequence[int | str], batch: int, window: int) -> tuple[int, ...]:
    """Fill in the sizes that a graph of all layers and the head leaves open."""
    if name == names.HIDDEN:
        return batch, 1, int(shape[-1])
    if len(shape) == 4:
        return batch, 1, window, int(shape[-1])
    return batch, *(int(size) for size in shape[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
