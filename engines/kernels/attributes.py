"""What a graph's node carries so that TensorRT runs it as one of our plugins."""

from collections.abc import Sequence

from runtime.names import DOMAIN
from runtime.plugins.fields import CODE_FIELD, LAUNCH_FIELD, fields_from_launch
from runtime.plugins.launch import PLUGIN_VERSION, Cubin, Launch, Variant

from .compile import CompiledKernel, compile_kernel
from .specs import OpSpec


def make_launch(op: OpSpec, sms: Sequence[int]) -> Launch:
    """Compile all kernels of an op.

    Args:
        op: from `engines.kernels.ops`.
        sms: compute capabilities, as in (89, 120); with none there is only the arithmetic.

    Raises:
        UnsupportedError: one of them has no kernels.
    """
    return Launch(
        op=op.op,
        inputs=op.inputs,
        outputs=op.outputs,
        arguments=op.variants[0].kernel.arguments,
        rows=op.rows,
        num_experts=op.sizes.num_experts,
        num_chosen=op.sizes.num_chosen,
        variants=tuple(
            Variant(
                min_tokens=one.min_tokens,
                block_rows=one.block_rows,
                columns=one.columns,
                cubins=tuple(_cubin(compile_kernel(one.kernel, sm)) for sm in sms),
            )
            for one in op.variants
        ),
    )


def plugin_attributes(op: OpSpec, sms: Sequence[int]) -> dict[str, str]:
    """Make the attributes that a node of the domain `kimivl` needs beside its own.

    With `plugin_namespace` TensorRT prefers the plugin to the function body of the same name.

    Args:
        op: from `engines.kernels.ops`.
        sms: compute capabilities of the engine, as in (89, 120).

    Raises:
        UnsupportedError: one of them has no kernels.
    """
    fields = fields_from_launch(make_launch(op, sms))
    return {
        "plugin_namespace": DOMAIN,
        "plugin_version": PLUGIN_VERSION,
        LAUNCH_FIELD: fields.launch.decode(),
        CODE_FIELD: fields.code.decode(),
    }


def _cubin(kernel: CompiledKernel) -> Cubin:
    return Cubin(
        sm=kernel.sm,
        entry=kernel.entry,
        num_warps=kernel.num_warps,
        shared_bytes=kernel.shared_bytes,
        code=kernel.cubin,
    )
