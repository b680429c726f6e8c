"""One graph on the device: a plan that others may share, and the weights of this one."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..gpu.memory import Memory
from ..gpu.numbers import STORED, from_stored, to_stored
from ..protocol import FloatArray
from .plan import Plan, Shape


class Stage:
    """Enqueues the plan of one graph."""

    def __init__(
        self, plan: Plan, weights: Mapping[str, int], scratch: int, memory: Memory
    ) -> None:
        self.plan = plan
        self._weights, self._scratch, self._memory = weights, scratch, memory
        self._buffers: dict[str, tuple[int, int]] = {}

    def enqueue(
        self,
        shapes: Mapping[str, Shape],
        addresses: Mapping[str, int],
        owner: Hashable = None,
    ) -> None:
        """Ask the device to run the graph; weights are bound beside what is given.

        `owner` as in `Plan.enqueue`.
        """
        self.plan.enqueue(shapes, {**self._weights, **addresses}, self._scratch, owner)

    def run(
        self, inputs: Mapping[str, NDArray[Any]], first_sizes: Sequence[int]
    ) -> list[FloatArray]:
        """Run the graph on values of the host, in buffers that grow with need.

        Args:
            inputs: by name, as fp32 or integers.
            first_sizes: the first axis of each output.

        Returns:
            The outputs in fp32.
        """
        shapes = {name: values.shape for name, values in inputs.items()}
        addresses = {}
        for name, values in inputs.items():
            stored = to_stored(values, self.plan.dtype(name))
            addresses[name] = self._buffer(name, stored.nbytes)
            self._memory.device.write(addresses[name], stored)
        outputs = []
        for name, size in zip(self.plan.outputs, first_sizes, strict=True):
            dtype = self.plan.dtype(name)
            outputs.append(np.empty((size, *self.plan.shape(name)[1:]), dtype=STORED[dtype]))
            addresses[name] = self._buffer(name, outputs[-1].nbytes)
        self.enqueue(shapes, addresses)
        found = []
        for name, stored in zip(self.plan.outputs, outputs, strict=True):
            self._memory.device.read(addresses[name], stored)
            found.append(from_stored(stored, self.plan.dtype(name)))
        return found

    def _buffer(self, name: str, size_bytes: int) -> int:
        address, size = self._buffers.get(name, (0, 0))
        if size < size_bytes:
            if address:
                del self._buffers[name]  # there may be no memory for the larger one
                self._memory.free(address)
            address = self._memory.allocate(size_bytes)
            self._buffers[name] = (address, size_bytes)
        return address
