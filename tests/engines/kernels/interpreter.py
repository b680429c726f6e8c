"""Triton's interpreter in a process of its own: Triton decides at import how it runs."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.kernels.specs import OpSpec

if TYPE_CHECKING:
    import torch

Arrays = dict[str, NDArray[Any]]


class Interpreter:
    """Runs ops on numpy arrays."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def run(self, op: OpSpec, inputs: Arrays, outputs: Arrays, num_tokens: int) -> Arrays:
        """Return the outputs; what is not written keeps what `outputs` had."""
        return self._pool.submit(_run, op, inputs, outputs, num_tokens).result(timeout=300)


@contextmanager
def start_interpreter() -> Iterator[Interpreter]:
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_be_interpreter) as pool:
        yield Interpreter(pool)


def _be_interpreter() -> None:
    os.environ["TRITON_INTERPRET"] = "1"


def _run(op: OpSpec, inputs: Arrays, outputs: Arrays, num_tokens: int) -> Arrays:
    from engines.kernels.interpret import run_interpreted

    read = {name: _tensor(array) for name, array in inputs.items()}
    written = {name: _tensor(array) for name, array in outputs.items()}
    with np.errstate(all="ignore"):  # the interpreter computes masked lanes too
        run_interpreted(op, {**read, **written}, num_tokens)
    return {
        name: _bits(tensor).numpy().view(outputs[name].dtype) for name, tensor in written.items()
    }


_BITS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


def _tensor(array: NDArray[Any]) -> "torch.Tensor":
    import torch

    kinds = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn}
    bits = torch.from_numpy(array.view(_BITS[array.dtype.itemsize]).copy())
    kind: torch.dtype = kinds.get(array.dtype.name) or getattr(torch, array.dtype.name)
    return bits.view(kind)


def _bits(tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(kinds[tensor.element_size()])
