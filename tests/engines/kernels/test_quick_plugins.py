"""Quick plugins, registered with a stand-in that checks what TensorRT 11 checks."""

import inspect
import typing
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engines.kernels.attributes import make_launch
from engines.kernels.ops import grouped_down_op, grouped_up_op, router_op, sort_op
from engines.kernels.quick_plugins import quick_attributes, quick_name, register_quick_plugin
from engines.kernels.specs import ExpertSizes, OpSpec

from .test_experts import make_form

pytest.importorskip("triton")
SIZES = ExpertSizes(width=128, inner=64, num_experts=8, num_chosen=3)
Function = Callable[..., Any]


class TensorDesc:
    """Shapes of a stand-in are numbers; a quick plugin only adds, multiplies and divides them."""

    def __init__(self, *shape: int, dtype: str = "") -> None:
        self.shape_expr, self.dtype = shape, dtype


class KernelLaunchParams(SimpleNamespace):
    grid_x = grid_y = grid_z = block_x = block_y = block_z = 1
    shared_mem = 0


class SymIntExprs(tuple[int, ...]):
    @classmethod
    def from_tuple(cls, values: list[int]) -> "SymIntExprs":
        return cls(values)


class StandIn(ModuleType):
    """The part of `tensorrt.plugin` that is used, with its demands on signatures."""

    TensorDesc = TensorDesc
    KernelLaunchParams = KernelLaunchParams
    SymIntExprs = SymIntExprs
    SymInt32 = int
    AutoTuneCombination = staticmethod(lambda *values: values)
    from_shape_expr = staticmethod(lambda shape, dtype: TensorDesc(*shape, dtype=dtype))
    min = min
    cdiv = staticmethod(lambda first, second: -(-first // second))

    def __init__(self) -> None:
        super().__init__("tensorrt.plugin")
        self.found: dict[str, dict[str, Function]] = {}

    def register(self, plugin_id: str) -> Callable[[Function], Function]:
        assert plugin_id not in self.found
        assert "." not in plugin_id

        def decorate(function: Function) -> Function:
            signature = inspect.signature(function)
            assert all(one.annotation is TensorDesc for one in signature.parameters.values())
            assert typing.get_origin(signature.return_annotation) is tuple
            assert set(typing.get_args(signature.return_annotation)) == {TensorDesc}
            self.found[plugin_id] = {"register": function}
            return function

        return decorate

    def _follow(self, plugin_id: str, kind: str, *more: str) -> Callable[[Function], Function]:
        def decorate(function: Function) -> Function:
            tensors = inspect.signature(self.found[plugin_id]["register"]).parameters
            names = list(inspect.signature(function).parameters)
            assert names == [*tensors, "outputs", *more]
            self.found[plugin_id][kind] = function
            return function

        return decorate

    def autotune(self, plugin_id: str) -> Callable[[Function], Function]:
        return self._follow(plugin_id, "autotune")

    def aot_impl(self, plugin_id: str) -> Callable[[Function], Function]:
        def decorate(function: Function) -> Function:
            returned = typing.get_args(inspect.signature(function).return_annotation)
            assert [set(typing.get_args(one)) for one in returned[:2]] == [{str, bytes}] * 2
            assert returned[2:] == (KernelLaunchParams, SymIntExprs)
            return self._follow(plugin_id, "aot_impl", "tactic")(function)

        return decorate


OPS = [
    router_op(SIZES, scale=2.5, normalize=True),
    sort_op(SIZES),
    grouped_up_op(SIZES, make_form("fp16", "int8", 0)),
    grouped_down_op(SIZES, make_form("bf16", "bf16", 0)),
]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.op)
def test_a_quick_plugin_launches_what_a_plugin_would(op: OpSpec) -> None:
    plugin = StandIn()
    trt: Any = SimpleNamespace(
        plugin=plugin, DataType=SimpleNamespace(**{name: name for name in _types(op)})
    )
    plugin_id = register_quick_plugin(trt, op, 90)
    assert plugin_id == f"{quick_attributes()['plugin_namespace']}::{quick_name(op)}"
    functions, launch = plugin.found[plugin_id], make_launch(op, ())
    for num_tokens in (1, 7, 43, 512, 1000):
        inputs = [TensorDesc(num_tokens, 128)] * len(op.inputs)
        outputs = functions["register"](*inputs)
        expected = [
            tuple(size.constant + num_tokens * size.per_token for size in one.shape)
            for one in op.outputs
        ]
        assert [one.shape_expr for one in outputs] == expected
        for tactic, variant in enumerate(launch.variants, 1):
            entry, ptx, params, extra = functions["aot_impl"](*inputs, outputs, tactic)
            assert (params.grid_x, params.grid_y) == launch.grid(variant, num_tokens)
            assert f".entry {entry.decode()}(" in ptx.decode()
            assert extra == ((num_tokens,) if "tokens" in launch.arguments else ())
    ((types, layout, tactics),) = functions["autotune"](*inputs, outputs)
    assert types.split(", ") == [_types(op)[name] for name in _names(op)]
    assert (layout, tactics) == ("LINEAR", list(range(1, len(op.variants) + 1)))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.op)
def test_a_kernel_takes_inputs_then_scalars_then_outputs(op: OpSpec) -> None:
    inputs = [f"input {index}" for index in range(len(op.inputs))]
    outputs = [f"output {index}" for index in range(len(op.outputs))]
    for variant in op.variants:
        found = [one.source for one in variant.kernel.parameters]
        assert found in ([*inputs, *outputs], [*inputs, "tokens", *outputs])


def test_other_sizes_are_another_plugin() -> None:
    wider = ExpertSizes(width=128, inner=64, num_experts=9, num_chosen=3)
    assert len({quick_name(op) for op in (*OPS, sort_op(wider))}) == 5
    assert quick_name(sort_op(SIZES)) == quick_name(OPS[1])


def _names(op: OpSpec) -> list[str]:
    return [*op.inputs, *(output.dtype for output in op.outputs)]


def _types(op: OpSpec) -> dict[str, str]:
    """Names in a combination, by names in `DataType`."""
    return {name: {"FLOAT": "FP32", "HALF": "FP16"}.get(name, name) for name in _names(op)}
