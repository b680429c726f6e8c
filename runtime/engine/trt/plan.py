"""One deserialised plan: its profiles, its contexts, its inputs and outputs by name.

Source: `ICudaEngine`, `IExecutionContext` in the Python API of TensorRT 11 and TensorRT-RTX 1.7;
their guides on CUDA graphs: one context for each recording, memory shared between contexts.
"""

import functools
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from ...errors import ArtifactError, CapacityError
from ..gpu.device import Device

if TYPE_CHECKING:
    import tensorrt_rtx as api  # `tensorrt` has the same classes

Shape = tuple[int, ...]


class _Range(NamedTuple):
    least: Shape
    most: Shape

    def holds(self, shape: Shape) -> bool:
        return all(a <= size <= b for a, size, b in zip(self.least, shape, self.most, strict=True))


class _ContextKey(NamedTuple):
    profile: int
    owner: Hashable


class Plan:
    """A plan that runs on a device; contexts of all plans share one piece of memory."""

    def __init__(self, trt: ModuleType, content: bytes, where: str, device: Device) -> None:
        """Deserialise.

        Args:
            trt: the package that the plan was built with.
            content: the plan, whose hash was checked.
            where: its path, for errors.
            device: where it runs.

        Raises:
            ArtifactError: TensorRT does not take it.
        """
        self.where = where
        self._trt, self._device = trt, device
        self._runtime = trt.Runtime(_logger(trt))
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise ArtifactError(f"{where}: TensorRT does not load this plan; build it again")
        self._engine: api.ICudaEngine = engine
        self._contexts: dict[_ContextKey, api.IExecutionContext] = {}
        self._shapes: dict[_ContextKey, Mapping[str, Shape]] = {}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return self._names(self._trt.TensorIOMode.INPUT)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self._names(self._trt.TensorIOMode.OUTPUT)

    def dtype(self, name: str) -> str:
        """Give the type of an input or output, in TensorRT's words: `HALF`."""
        return str(self._engine.get_tensor_dtype(name).name)

    def shape(self, name: str) -> Shape:
        """Give the shape of an input or output, -1 where it is free."""
        return tuple(self._engine.get_tensor_shape(name))

    @property
    def scratch_bytes(self) -> int:
        """Memory that a context needs while it runs."""
        count = self._engine.num_optimization_profiles
        sizes = (self._engine.get_device_memory_size_for_profile_v2(one) for one in range(count))
        return max(sizes, default=0)

    def enqueue(
        self,
        shapes: Mapping[str, Shape],
        addresses: Mapping[str, int],
        scratch: int,
        owner: Hashable = None,
    ) -> None:
        """Ask the device to run the plan.

        Args:
            shapes: of every input with free sizes.
            addresses: of every input and output, in the device's memory.
            scratch: `scratch_bytes` of memory.
            owner: who has a context of its own for these shapes, because it records what is asked
                for: a recording is of a context, which must not change behind it. None shares one.

        Raises:
            CapacityError: no profile holds these shapes.
        """
        key = _ContextKey(self._profile_for(shapes), owner)
        context = self._context(key, scratch)
        if self._shapes.get(key) != shapes:
            for name, shape in shapes.items():
                self._must(context.set_input_shape(name, shape), f"the shape {shape} of {name}")
            self._shapes[key] = dict(shapes)
        for name in (*self.inputs, *self.outputs):
            self._must(context.set_tensor_address(name, addresses[name]), f"an address of {name}")
        self._must(context.execute_async_v3(self._device.stream), "the work")

    def _profile_for(self, shapes: Mapping[str, Shape]) -> int:
        for number, ranges in enumerate(self._profiles):
            if all(self._range_of(ranges, name).holds(one) for name, one in shapes.items()):
                return number
        wanted = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise CapacityError(
            f"{self.where}: no profile holds {wanted}; build the target with larger limits"
        )

    def can_be_recorded(self, owner: Hashable) -> bool:
        """Tell whether the contexts of an owner may run while the device records."""
        stream = self._device.stream
        return all(
            context.is_stream_capturable(stream)
            for key, context in self._contexts.items()
            if key.owner == owner
        )

    def forget(self, owner: Hashable) -> None:
        """Give the contexts of an owner back."""
        for key in [key for key in self._contexts if key.owner == owner]:
            del self._contexts[key]
            del self._shapes[key]

    def _range_of(self, ranges: Mapping[str, "_Range"], name: str) -> "_Range":
        """Give what an input may be; one that no profile names has fixed sizes."""
        fixed = self.shape(name)
        return ranges.get(name, _Range(fixed, fixed))

    @cached_property
    def _profiles(self) -> Sequence[Mapping[str, _Range]]:
        free = [name for name in self.inputs if -1 in self.shape(name)]
        return [
            {name: self._range(name, number) for name in free}
            for number in range(self._engine.num_optimization_profiles)
        ]

    def _range(self, name: str, profile: int) -> _Range:
        least, _, most = self._engine.get_tensor_profile_shape(name, profile)
        return _Range(tuple(least), tuple(most))

    def _context(self, key: "_ContextKey", scratch: int) -> "api.IExecutionContext":
        """Make a context once; it stays with its profile."""
        if key not in self._contexts:
            context = self._engine.create_execution_context(self._settings(key.owner is not None))
            self._must(context is not None, "a context")
            stream = self._device.stream
            self._must(context.set_optimization_profile_async(key.profile, stream), "a profile")
            context.set_device_memory(scratch, self.scratch_bytes)
            self._contexts[key] = context
        return self._contexts[key]

    def _settings(
        self, is_recorded: bool
    ) -> "api.IRuntimeConfig | api.ExecutionContextAllocationStrategy":
        """Say how a context gets memory and kernels.

        TensorRT-RTX compiles kernels for new shapes in the background and meanwhile runs others; a
        recording would keep those. So what is recorded waits for its own.
        """
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not is_recorded or not hasattr(self._engine, "create_runtime_config"):
            return strategy
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(strategy)
        eager = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        settings.dynamic_shapes_kernel_specialization_strategy = eager
        return settings

    def _names(self, mode: "api.TensorIOMode") -> tuple[str, ...]:
        count = self._engine.num_io_tensors
        names = (self._engine.get_tensor_name(index) for index in range(count))
        return tuple(name for name in names if self._engine.get_tensor_mode(name) == mode)

    def _must(self, is_done: bool, what: str) -> None:
        if not is_done:
            raise RuntimeError(f"{self.where}: TensorRT refused {what}")


@functools.cache  # TensorRT keeps the first logger that it sees, and never lets go
def _logger(trt: ModuleType) -> "api.ILogger":
    return trt.Logger(trt.Logger.ERROR)
