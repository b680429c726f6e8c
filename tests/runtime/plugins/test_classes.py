"""The plugin classes of TensorRT-RTX, called as it calls them, on a fake CUDA driver."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.cuda import Cuda
from runtime.errors import UnsupportedError
from runtime.plugins.classes import LaunchPlugin, make_creators
from runtime.plugins.driver import CudaDriver
from runtime.plugins.fields import Fields, fields_from_launch, launch_from_fields
from runtime.plugins.launch import PLUGIN_OPS

from .fake_cuda import FakeCuda, make_launch

SIZES = (8, 8, 8, 4, 8, 8)


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx")  # type: ignore[no-any-return]  # a module


def make_plugin(trt: ModuleType, cuda: FakeCuda, sms: tuple[int, ...] = (89,)) -> LaunchPlugin:
    stored = fields_from_launch(make_launch(sms))
    creator = make_creators(trt, lambda: CudaDriver(Cuda(cuda)))[2]
    return creator.create_plugin("a node", collect(trt, stored), trt.TensorRTPhase.RUNTIME)


def collect(trt: ModuleType, fields: Fields) -> Any:  # noqa: ANN401  # a class of TensorRT
    kind = trt.PluginFieldType.CHAR
    # Kept by the caller's frame through `fields`; the parser adds a zero byte.
    values = {
        name: np.frombuffer(value + b"\0", np.int8) for name, value in fields._asdict().items()
    }
    return [SimpleNamespace(name=name, data=value, type=kind) for name, value in values.items()]


def enqueue(plugin: LaunchPlugin, num_tokens: int) -> None:
    described = [SimpleNamespace(dims=(num_tokens, 100))]
    inputs, outputs = [0xA000 + index for index in range(6)], [0xB000]
    plugin.enqueue(described, [], inputs, outputs, 0, 0x57)


def test_there_is_a_creator_for_every_op(trt: ModuleType) -> None:
    creators = make_creators(trt, lambda: CudaDriver(Cuda(FakeCuda(89))))
    assert tuple(creator.name for creator in creators) == PLUGIN_OPS
    assert {creator.plugin_namespace for creator in creators} == {"kimivl"}
    assert {creator.plugin_version for creator in creators} == {"1"}


def test_a_plugin_launches_the_variant_for_its_tokens(trt: ModuleType) -> None:
    cuda = FakeCuda(89, SIZES)
    plugin = make_plugin(trt, cuda)
    for num_tokens in (5, 100):
        enqueue(plugin, num_tokens)
    few, many = cuda.launches
    assert (few.grid, many.grid) == ((5, 8, 1), (2, 12, 1))
    assert cuda.entries == ["few_89", "many_89"]
    assert few.threads == (128, 1, 1)
    assert few.stream == 0x57
    assert few.parameters == (
        (0xA000).to_bytes(8, "little"),
        (0xA004).to_bytes(8, "little"),
        (0xB000).to_bytes(8, "little"),
        (5).to_bytes(4, "little"),
        bytes(8),
        bytes(8),
    )


def test_nothing_is_launched_for_no_tokens(trt: ModuleType) -> None:
    cuda = FakeCuda(89, SIZES)
    enqueue(make_plugin(trt, cuda), 0)
    assert cuda.launches == []


def test_kernels_are_loaded_when_a_context_is_made_and_not_again(trt: ModuleType) -> None:
    cuda = FakeCuda(89, SIZES)
    plugin = make_plugin(trt, cuda, (80, 89, 120)).attach_to_context(None)
    assert cuda.entries == ["few_89", "many_89"]
    enqueue(plugin, 5)
    assert len(cuda.entries) == 2
    assert cuda.launches[0].function == 0x2001


def test_a_device_without_kernels_is_told_when_a_context_is_made(trt: ModuleType) -> None:
    plugin = make_plugin(trt, FakeCuda(90), (80, 89))
    with pytest.raises(UnsupportedError, match="compiled for sm80, sm89, the device is sm90"):
        plugin.attach_to_context(None)


def test_a_plugin_takes_its_types_in_rows_and_nothing_else(trt: ModuleType) -> None:
    plugin = make_plugin(trt, FakeCuda(89))
    linear, other = trt.TensorFormat.LINEAR, trt.TensorFormat.HWC8

    def takes(position: int, kind: str, layout: Any) -> bool:  # noqa: ANN401  # an enumeration
        desc = SimpleNamespace(type=getattr(trt.DataType, kind), format=layout)
        tensors = [SimpleNamespace(desc=desc)] * 7
        return plugin.supports_format_combination(position, tensors, 6)

    types = ("HALF", "INT64", "INT32", "INT32", "INT8", "HALF", "HALF")
    assert all(takes(position, kind, linear) for position, kind in enumerate(types))
    assert not takes(0, "HALF", other)
    assert not takes(0, "BF16", linear)
    assert not takes(4, "INT4", linear)


def test_a_clone_keeps_what_the_plan_will_hold(trt: ModuleType) -> None:
    plugin = make_plugin(trt, FakeCuda(89)).clone()
    kept = {field.name: field.data.tobytes() for field in plugin.get_fields_to_serialize()}
    assert launch_from_fields(Fields(**kept)) == make_launch()
    assert plugin.num_outputs == 1
    assert plugin.get_output_data_types([]) == [trt.DataType.HALF]
