"""A session of ONNX Runtime's CUDA provider over stand-ins, and one step of a decoder recorded.

    python -m benchmarks.gpu.stand_in_session GRAPH [BATCH WINDOW]

Run by a Python that finds onnxruntime-gpu and the stand-ins first; what is told stands on stderr.
"""

import os
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import onnxruntime as ort

from runtime import names
from runtime.engine.cuda.provider import CUDA, GRAPH_ID
from runtime.engine.cuda.tensor_types import TYPES
from runtime.engine.onnx_session import session_options

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
    options = session_options(Path(graph))
    if talks:
        options.log_severity_level = 0
        options.log_verbosity_level = 1
    providers = [(CUDA.name, CUDA.options(records=True)), "CPUExecutionProvider"]
    session = ort.InferenceSession(graph, options, providers=providers)
    if session.get_providers()[0] != CUDA.name:
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
            kind = TYPES[one.type]
            fed = next((name for name in memory if names.output_of(name) == one.name), one.name)
            if fed not in memory:
                memory[fed] = np.zeros(prod(shape) * kind.size + _ALIGNMENT, dtype=np.uint8)
            address = -(-memory[fed].ctypes.data // _ALIGNMENT) * _ALIGNMENT
            bind(one.name, CUDA.device_type, 0, kind.number, shape, address)
    options = ort.RunOptions()
    options.add_run_config_entry(GRAPH_ID, "1")
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
