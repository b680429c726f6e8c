"""Our ops as quick plugins of TensorRT 11: their PTX lies in the engine, which then runs alone.

An engine with these needs no Python and none of our classes where it runs. TensorRT tries the
variants of an op as tactics and keeps the fastest for each profile, instead of choosing by N.

Written against the documented interface; not run, since TensorRT 11 cannot build without a GPU.
Source: `tensorrt.plugin` of TensorRT 10.9 to 11.3 (register, autotune, aot_impl, their checks of
signatures); kernels are passed inputs, then scalars, then outputs.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from types import GenericAlias, ModuleType
from typing import TYPE_CHECKING, NamedTuple, TypeVar, Union

from runtime.names import DOMAIN
from runtime.plugins.launch import PLUGIN_VERSION, Output

from .compile import CompiledKernel, compile_kernel
from .specs import OpSpec, VariantSpec

if TYPE_CHECKING:
    from tensorrt import plugin as api

_T = TypeVar("_T")
_THREADS_OF_WARP = 32
_TYPE_NAMES = {"FLOAT": "FP32", "HALF": "FP16"}
"""Names of types in combinations; all others are named as in `DataType`."""


class _Quick(NamedTuple):
    """What the three functions of a quick plugin share."""

    trt: ModuleType
    op: OpSpec
    kernels: tuple[CompiledKernel, ...]
    """One for each variant."""

    def describe(self, *inputs: "api.TensorDesc") -> "tuple[api.TensorDesc, ...]":
        """Give shapes and types of the outputs."""
        num_tokens = inputs[0].shape_expr[0]
        return tuple(self._output(output, num_tokens) for output in self.op.outputs)

    def _output(self, output: Output, num_tokens: "api.ShapeExpr") -> "api.TensorDesc":
        sizes = tuple(
            num_tokens * size.per_token + size.constant if size.per_token else size.constant
            for size in output.shape
        )
        dtype = getattr(self.trt.DataType, output.dtype)
        return self.trt.plugin.from_shape_expr(sizes, dtype=dtype)

    def combine(self, *_: "api.TensorDesc") -> "list[api.AutoTuneCombination]":
        """Give the one combination of types, with a tactic for each variant."""
        types = (*self.op.inputs, *(output.dtype for output in self.op.outputs))
        names = ", ".join(_TYPE_NAMES.get(one, one) for one in types)
        tactics = list(range(1, len(self.kernels) + 1))  # they must be positive
        return [self.trt.plugin.AutoTuneCombination(names, "LINEAR", tactics)]

    def implement(self, first: "api.TensorDesc", *others: "api.TensorDesc") -> "_Implementation":
        """Give entry, PTX, launch and scalars; the last argument is the tactic."""
        index = int(others[-1]) - 1
        kernel, variant = self.kernels[index], self.op.variants[index]
        num_tokens, plugin = first.shape_expr[0], self.trt.plugin
        launch = plugin.KernelLaunchParams()
        launch.grid_x = variant.columns
        launch.grid_y = self._rows(variant, num_tokens)
        launch.block_x = _THREADS_OF_WARP * kernel.num_warps
        launch.shared_mem = kernel.shared_bytes
        scalars = [plugin.SymInt32(num_tokens)] if "tokens" in kernel.arguments else []
        extra = plugin.SymIntExprs.from_tuple(scalars)
        return _Implementation(kernel.entry.encode(), kernel.ptx.encode(), launch, extra)

    def _rows(self, variant: VariantSpec, num_tokens: "api.ShapeExpr") -> "api.ShapeExpr":
        """Count programs along y; see `Launch.grid`, which says the same in numbers."""
        sizes, block, plugin = self.op.sizes, variant.block_rows, self.trt.plugin
        if self.op.rows == "one":
            return 1
        if self.op.rows == "tokens":
            return plugin.cdiv(num_tokens, block)
        num_pairs = num_tokens * sizes.num_chosen
        busy = plugin.min(num_pairs, sizes.num_experts)
        return (num_pairs + busy * (block - 1)) // block


class _Implementation(NamedTuple):
    entry: bytes
    ptx: bytes
    launch: "api.KernelLaunchParams"
    extra: "api.SymIntExprs"


def quick_name(op: OpSpec) -> str:
    """Name an op for its sizes and formats: a quick plugin is registered once, for one of them."""
    return f"{op.op}_{hashlib.sha256(repr(op).encode()).hexdigest()[:8]}"


def quick_attributes() -> dict[str, str | int]:
    """Make the attributes of a node whose op type is a `quick_name`; it needs no others."""
    return {"plugin_namespace": DOMAIN, "plugin_version": PLUGIN_VERSION, "aot": 1}


def register_quick_plugin(trt: ModuleType, op: OpSpec, sm: int) -> str:
    """Compile an op for the device that builds, and register it; before the graph is parsed.

    Args:
        trt: `tensorrt`, with `tensorrt.plugin` imported.
        op: from `engines.kernels.ops`; register each only once in a process.
        sm: compute capability of this machine's device, as in 90.

    Returns:
        The plugin's id, `kimivl::` and its `quick_name`.

    Raises:
        UnsupportedError: there are no kernels for this device.
    """
    kernels = tuple(compile_kernel(variant.kernel, sm) for variant in op.variants)
    quick, plugin = _Quick(trt, op, kernels), trt.plugin
    plugin_id = f"{DOMAIN}::{quick_name(op)}"
    parameters = op.variants[0].kernel.parameters
    names = [one.name for one in parameters if one.source.startswith("input")]
    described = GenericAlias(tuple, (plugin.TensorDesc,) * len(op.outputs))
    text = Union[str, bytes]  # noqa: UP007  # one of the forms that are looked for
    made = GenericAlias(tuple, (text, text, plugin.KernelLaunchParams, plugin.SymIntExprs))
    describe = _signed(quick.describe, names, kind=plugin.TensorDesc, returns=described)
    plugin.register(plugin_id)(describe)
    plugin.autotune(plugin_id)(_signed(quick.combine, [*names, "outputs"]))
    implement = _signed(quick.implement, [*names, "outputs", "tactic"], returns=made)
    plugin.aot_impl(plugin_id)(implement)
    return plugin_id


def _signed(
    function: "Callable[..., _T]",
    names: Sequence[str],
    *,
    kind: type = inspect.Parameter.empty,
    returns: object = inspect.Signature.empty,
) -> "Callable[..., _T]":
    """Give a function the signature that TensorRT reads: as many tensors as the op has."""

    def call(*values: "api.TensorDesc") -> _T:
        return function(*values)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
        for name in names
    ]
    signature = inspect.Signature(parameters, return_annotation=returns)
    call.__signature__ = signature  # type: ignore[attr-defined]  # read by `inspect.signature`
    return call
