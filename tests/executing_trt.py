"""A double of TensorRT that executes: its contexts run lowered graphs in ONNX Runtime.

Device memory is memory of this process, so that addresses are real: a context reads inputs and
weights from the addresses that were bound and writes outputs to theirs. Profiles, shapes and types
come from the graph that the plan was built from and from the report beside it. What is 16 bits wide
is computed in fp32 and rounded at the plan's border.
"""

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from export.graph.widen import widen_graph
from runtime.artifact.folder import Artifact
from runtime.errors import CapacityError

if TYPE_CHECKING:
    import tensorrt_rtx

Array = NDArray[Any]
ALIGNMENT = 256
POISON = 0xA5
"""Fills memory that nobody has written to."""

_NUMPY = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
    ir.DataType.INT32: np.int32,
    ir.DataType.INT64: np.int64,
}
_TRT = {
    ir.DataType.FLOAT: "FLOAT",
    ir.DataType.FLOAT16: "HALF",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.INT8: "INT8",
    ir.DataType.INT4: "INT4",
    ir.DataType.FLOAT8E4M3FN: "FP8",
    ir.DataType.FLOAT4E2M1: "FP4",
}


def _real() -> ModuleType:
    """The package whose enumerations the double speaks in."""
    import tensorrt_rtx

    return tensorrt_rtx  # type: ignore[no-any-return]  # a module without types


class Block(NamedTuple):
    """Memory that was asked for, in a larger one, so that it begins where it may."""

    memory: "ctypes.Array[ctypes.c_char]"
    size_bytes: int


class HostDevice:
    """A device whose memory is this process's."""

    name = "a double of a GPU"
    stream = 0

    def __init__(self, sm: int = 89, memory_bytes: int = 1 << 40) -> None:
        self.sm = sm
        self.memory_bytes = memory_bytes
        self.blocks: dict[int, Block] = {}
        self.is_active = True  # while an engine is opened
        self.can_record = True
        self.recordings: list[list[Callable[[], None]]] = []
        self.replays = 0
        self.bytes_read = 0
        self._recording: list[Callable[[], None]] | None = None

    def allocate(self, size_bytes: int) -> int:
        self.memory_bytes -= size_bytes
        if self.memory_bytes < 0:
            raise CapacityError(f"{self.name}: {size_bytes} bytes more are needed")
        block = ctypes.create_string_buffer(size_bytes + ALIGNMENT)
        ctypes.memset(block, POISON, size_bytes + ALIGNMENT)
        address = -(-ctypes.addressof(block) // ALIGNMENT) * ALIGNMENT
        self.blocks[address] = Block(block, size_bytes)
        return address

    @contextmanager
    def active(self) -> Iterator[None]:
        self.is_active = True
        yield
        self.is_active = False

    def free(self, address: int) -> None:
        del self.blocks[address]

    def write(self, address: int, values: Array) -> None:
        self._inside(address, values.nbytes)
        assert self._recording is None, "host memory is not part of a recording"
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def read(self, address: int, values: Array) -> None:
        self._inside(address, values.nbytes)
        assert self._recording is None, "a recording waits for nothing"
        self.bytes_read += values.nbytes
        ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def copy(self, source: int, target: int, size_bytes: int) -> None:
        self._inside(source, size_bytes)
        self._inside(target, size_bytes)
        ctypes.memmove(target, source, size_bytes)

    def clear(self, address: int, size_bytes: int) -> None:
        self._inside(address, size_bytes)
        ctypes.memset(address, 0, size_bytes)

    @property
    def is_recording(self) -> bool:
        return self._recording is not None

    def record(self, work: Callable[[], None]) -> int:
        assert self.can_record
        self._recording = []
        work()
        self.recordings.append(self._recording)
        self._recording = None
        return len(self.recordings)

    def replay(self, recording: int) -> None:
        self.replays += 1
        for launch in self.recordings[recording - 1]:
            launch()

    def forget(self, recording: int) -> None:
        self.recordings[recording - 1] = []

    def launch(self, work: Callable[[], None]) -> None:
        """Do some work, or keep it while a recording is made."""
        if self._recording is None:
            work()
        else:
            self._recording.append(work)

    def array(self, address: int, shape: tuple[int, ...], dtype: type) -> Array:
        """View device memory."""
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._inside(address, count)
        raw = np.ctypeslib.as_array((ctypes.c_ubyte * count).from_address(address))
        found: Array = raw.view(dtype).reshape(shape)
        return found

    def _inside(self, address: int, size_bytes: int) -> None:
        assert self.is_active, "another thread may have the device"
        for start, block in self.blocks.items():
            if start <= address and address + size_bytes <= start + block.size_bytes:
                return
        raise AssertionError(f"{size_bytes} bytes at {address} are nobody's")


class ExecutingPlan:
    """What a plan was built from: satisfies the part of ICudaEngine that the runtime uses."""

    def __init__(self, graph: Path, report: Path, device: HostDevice) -> None:
        self.device = device
        self.model = ir.load(graph)
        self.profiles: list[dict[str, dict[str, str]]] = json.loads(report.read_text())["profiles"]
        self.values = {
            str(value.name): value
            for value in (*self.model.graph.inputs, *self.model.graph.outputs)
        }
        self.num_inputs = len(self.model.graph.inputs)
        self.num_io_tensors = len(self.values)
        self.num_optimization_profiles = len(self.profiles)
        self._sessions: dict[tuple[tuple[str, int], ...], ort.InferenceSession] = {}

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> "tensorrt_rtx.TensorIOMode":
        modes = _real().TensorIOMode
        is_input = list(self.values).index(name) < self.num_inputs
        return modes.INPUT if is_input else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> "tensorrt_rtx.DataType":
        return _real().DataType.__members__[_TRT[self.dtype(name)]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self.values[name].shape
        assert shape is not None
        return tuple(size if isinstance(size, int) else -1 for size in shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shapes = self.profiles[profile][name]
        return [tuple(map(int, shapes[key].split("x"))) for key in ("min", "opt", "max")]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 1024 * (profile + 1)

    def create_runtime_config(self) -> "Settings":
        return Settings()

    def create_execution_context(
        self, settings: "tensorrt_rtx.ExecutionContextAllocationStrategy | Settings"
    ) -> "ExecutingContext":
        strategy = settings.strategy if isinstance(settings, Settings) else settings
        assert strategy == _real().ExecutionContextAllocationStrategy.USER_MANAGED
        return ExecutingContext(self, waits_for_kernels=isinstance(settings, Settings))

    def dtype(self, name: str) -> ir.DataType:
        dtype = self.values[name].dtype
        assert dtype is not None
        return dtype

    @property
    def weights(self) -> list[str]:
        """Inputs that were weights: they are in no profile and have fixed sizes."""
        free = set(self.profiles[0]) if self.profiles else set()
        names = [str(value.name) for value in self.model.graph.inputs]
        return [name for name in names if name not in free]

    def session(self, addresses: Mapping[str, int]) -> ort.InferenceSession:
        """A session whose weights are the bytes that were bound."""
        key = tuple((name, addresses[name]) for name in self.weights)
        if key not in self._sessions:
            model = ir.from_proto(ir.to_proto(self.model))
            for name in self.weights:
                self._bind(model, name, addresses[name])
            widen_graph(model)
            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = 1
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            content = ir.to_proto(model).SerializeToString()
            self._sessions[key] = ort.InferenceSession(content, options)
        return self._sessions[key]

    def _bind(self, model: ir.Model, name: str, address: int) -> None:
        (value,) = (one for one in model.graph.inputs if one.name == name)
        assert value.dtype is not None
        assert value.shape is not None
        shape = tuple(value.shape.numpy())
        size = -(-int(np.prod(shape, dtype=np.int64)) * value.dtype.bitwidth // 8)
        raw = self.device.array(address, (size,), np.uint8).tobytes()
        proto = onnx.TensorProto(name=name, data_type=value.dtype.value, dims=shape, raw_data=raw)
        model.graph.inputs.remove(value)
        value.const_value = ir.serde.deserialize_tensor(proto)
        model.graph.initializers.add(value)


class Settings:
    """Satisfies the part of IRuntimeConfig that the runtime uses."""

    strategy: object = None
    _kernels: object = None

    def set_execution_context_allocation_strategy(self, strategy: object) -> None:
        self.strategy = strategy

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> object:
        return self._kernels

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, strategy: object) -> None:
        assert strategy == _real().DynamicShapesKernelSpecializationStrategy.EAGER
        self._kernels = strategy


class ExecutingContext:
    """Satisfies the part of IExecutionContext that the runtime uses."""

    def __init__(self, plan: ExecutingPlan, *, waits_for_kernels: bool) -> None:
        self.plan = plan
        self.waits_for_kernels = waits_for_kernels
        self.is_recorded = False
        self.has_run = False
        self.profile = -1
        self.scratch = (0, 0)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == self.plan.device.stream
        self.profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream == self.plan.device.stream
        return self.plan.device.can_record

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.is_recorded, "what was recorded must not change"
        least, _, most = self.plan.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = tuple(shape)
        return all(a <= size <= b for a, size, b in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % ALIGNMENT == 0, name
        self.addresses[name] = address
        return address > 0

    def execute_async_v3(self, stream: int) -> bool:
        plan = self.plan
        assert stream == plan.device.stream
        plan.device._inside(*self.scratch)
        if plan.device.is_recording:
            assert self.waits_for_kernels
            assert self.has_run, "kernels are chosen before a recording"
            self.is_recorded = True
        self.has_run = True
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        plan.device.launch(lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        plan, session = self.plan, self.plan.session(addresses)
        given = {}
        for one in session.get_inputs():
            stored = _NUMPY[plan.dtype(one.name)]
            values = plan.device.array(addresses[one.name], shapes[one.name], stored)
            is_wide = one.type == "tensor(float)"
            given[one.name] = values.astype(np.float32) if is_wide else values
        for one, values in zip(session.get_outputs(), session.run(None, given), strict=True):
            stored = _NUMPY[plan.dtype(one.name)]
            plan.device.array(addresses[one.name], values.shape, stored)[...] = values


def executing_package(artifact: Artifact, target: str, device: HostDevice) -> ModuleType:
    """Make what stands for `tensorrt_rtx`: plans are told by their hash, as the manifest has it."""
    record = artifact.target(target)
    assert record.plans is not None
    plans: dict[str, tuple[Path, Path]] = {}
    for name, engine in record.plans.engines.items():
        place = artifact.folder / engine.path
        graph = artifact.folder / record.graphs[name]
        if engine.weights:
            graph = place.with_suffix(".onnx")
        plans.setdefault(artifact.manifest.files[engine.path].sha256, (graph, place))

    class Runtime:
        def __init__(self, logger: "tensorrt_rtx.ILogger") -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> ExecutingPlan | None:
            found = plans.get(hashlib.sha256(content).hexdigest())
            if found is None:
                return None
            graph, place = found
            return ExecutingPlan(graph, place.with_suffix(".json"), device)

    package = ModuleType("executing_trt")
    package.__dict__.update(
        Runtime=Runtime,
        Logger=_real().Logger,
        DataType=_real().DataType,
        TensorIOMode=_real().TensorIOMode,
        ExecutionContextAllocationStrategy=_real().ExecutionContextAllocationStrategy,
        DynamicShapesKernelSpecializationStrategy=(
            _real().DynamicShapesKernelSpecializationStrategy
        ),
        __version__=record.plans.version,
    )
    return package
