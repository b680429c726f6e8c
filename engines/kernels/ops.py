"""The four ops for a model's sizes and number formats: their types, and the kernels of each.

A kernel is compiled for one model. Most ops have one for few tokens and one for many; where the
second begins is arithmetic, and blocks are chosen by reasoning, not yet by measurement.
"""

from dataclasses import replace

from runtime.errors import UnsupportedError, describe_problems
from runtime.names import ROUTER
from runtime.plugins.launch import GROUPED_DOWN, GROUPED_UP, SORT_BY_EXPERT, Output, Size

from .specs import ExpertFormat, ExpertSizes, KernelSpec, OpSpec, Parameter, VariantSpec

BASES = ("fp32", "fp16", "bf16")
CODES = ("int8", "fp8", "int4")

_POINTERS = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16", "fp8": "*fp8e4nv"}
_POINTERS |= {"int4": "*i8", "int8": "*i8", "int32": "*i32", "int64": "*i64"}  # int4: two in a byte
_TENSORRT = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "fp8": "FP8"}
_TENSORRT |= {"int4": "INT4", "int8": "INT8", "int32": "INT32", "int64": "INT64"}

_SMALL_TILE = 16
"""Pairs: the fewest rows that tensor cores multiply."""
_TILE = {"fp32": 32, "fp16": 64, "bf16": 64}
_ROUTER_BLOCK_FROM = 512
"""Tokens from which the router takes several in a program: fewer would leave a device idle."""
_ROUTER_BLOCK = 16


def router_op(sizes: ExpertSizes, *, scale: float, normalize: bool) -> OpSpec:
    """Choose experts: hidden (N, C), weight (C, E), bias (E) to experts (N, K), scores (N, K)."""
    inputs = {"hidden": "fp32", "weight": "fp32", "bias": "fp32"}
    outputs = {"experts": "int64", "scores": "fp32"}
    constants = {
        "WIDTH": sizes.width,
        "NUM_EXPERTS": sizes.num_experts,
        "NUM_CHOSEN": sizes.num_chosen,
        "SCALE": scale,
        "NORMALIZE": int(normalize),
        "BLOCK_EXPERTS": max(16, _power_of_2(sizes.num_experts)),
        "BLOCK_CHOSEN": _power_of_2(sizes.num_chosen),
    }
    one = KernelSpec(
        function="route",
        parameters=_parameters(inputs, outputs, _TOKENS),
        constants={**constants, "BLOCK_TOKENS": 1, "BLOCK_WIDTH": 128},
        num_warps=8,
        num_stages=3,
    )
    blocks = {**constants, "BLOCK_TOKENS": _ROUTER_BLOCK, "BLOCK_WIDTH": 32}
    several = replace(one, constants=blocks, num_warps=4, num_stages=2)
    shape = (Size(0, 1), Size(sizes.num_chosen, 0))
    return OpSpec(
        op=ROUTER,
        inputs=_types(inputs),
        outputs=tuple(Output(dtype=kind, shape=shape) for kind in _types(outputs)),
        rows="tokens",
        sizes=sizes,
        variants=(
            VariantSpec(min_tokens=0, block_rows=1, columns=1, kernel=one),
            VariantSpec(
                min_tokens=_ROUTER_BLOCK_FROM, block_rows=_ROUTER_BLOCK, columns=1, kernel=several
            ),
        ),
    )


def sort_op(sizes: ExpertSizes) -> OpSpec:
    """Sort pairs: experts (N, K) to order int32 (N * K), starts int32 (E + 1)."""
    inputs, outputs = {"experts": "int64"}, {"order": "int32", "starts": "int32"}
    kernel = KernelSpec(
        function="sort_by_expert",
        parameters=_parameters(inputs, outputs, _TOKENS),
        constants={
            "NUM_EXPERTS": sizes.num_experts,
            "NUM_CHOSEN": sizes.num_chosen,
            "BLOCK_PAIRS": 1024,
        },
        num_warps=4,
        num_stages=2,
    )
    shapes = ((Size(0, sizes.num_chosen),), (Size(sizes.num_experts + 1, 0),))
    kinds = _types(outputs)
    return OpSpec(
        op=SORT_BY_EXPERT,
        inputs=_types(inputs),
        outputs=tuple(Output(dtype=a, shape=b) for a, b in zip(kinds, shapes, strict=True)),
        rows="one",
        sizes=sizes,
        variants=(
            VariantSpec(min_tokens=0, block_rows=1, columns=sizes.num_experts, kernel=kernel),
        ),
    )


def grouped_up_op(sizes: ExpertSizes, form: ExpertFormat) -> OpSpec:
    """First half of the experts, for pairs in order: to inner (N, K, I).

    Inputs: hidden (N, C), experts (N, K), order, starts, gate (E, C, I), its scales, up (E, C, I),
    its scales. A format without scales has no inputs for them.

    Raises:
        UnsupportedError: the kernel cannot read the format.
    """
    _check(sizes, form, num_in=sizes.width)
    inputs = {"hidden": form.base, "experts": "int64", "order": "int32", "starts": "int32"}
    inputs |= _matrix("gate", form) | _matrix("up", form)
    return _grouped(GROUPED_UP, sizes, form, inputs, {"inner": form.base})


def grouped_down_op(sizes: ExpertSizes, form: ExpertFormat) -> OpSpec:
    """Second half of the experts, for pairs in order: to parts (N, K, C), weighed by the scores.

    Inputs: inner (N, K, I), scores fp32 (N, K), order, starts, down (E, I, C), its scales. A format
    without scales has no input for them.

    Raises:
        UnsupportedError: the kernel cannot read the format.
    """
    _check(sizes, form, num_in=sizes.inner)
    inputs = {"inner": form.base, "scores": "fp32", "order": "int32", "starts": "int32"}
    inputs |= _matrix("down", form)
    return _grouped(GROUPED_DOWN, sizes, form, inputs, {"parts": form.base})


_TOKENS = Parameter(name="num_tokens", source="tokens", kind="i32")


def _grouped(
    op: str,
    sizes: ExpertSizes,
    form: ExpertFormat,
    inputs: dict[str, str],
    outputs: dict[str, str],
) -> OpSpec:
    """Put a half of the experts together."""
    is_up = op == GROUPED_UP
    num_in, num_out = (sizes.width, sizes.inner) if is_up else (sizes.inner, sizes.width)
    constants: dict[str, int | float | None] = {
        "NUM_IN": num_in,
        "NUM_OUT": num_out,
        "NUM_EXPERTS": sizes.num_experts,
        "IS_PACKED": int(form.codes == "int4"),
        "GROUP": _group(form, num_in),
        "BLOCK_EXPERTS": _power_of_2(sizes.num_experts),
    }
    if is_up:
        constants["NUM_CHOSEN"] = sizes.num_chosen
    if form.weights is None:
        matrices = ("gate", "up") if is_up else ("down",)
        constants |= dict.fromkeys(f"{name}_scale" for name in matrices)
    kernel = KernelSpec(
        function="grouped_up" if is_up else "grouped_down",
        parameters=_parameters(inputs, outputs),
        constants=constants,
        num_warps=4,
        num_stages=3,
    )
    shape = (Size(0, 1), Size(sizes.num_chosen, 0), Size(num_out, 0))
    return OpSpec(
        op=op,
        inputs=_types(inputs),
        outputs=tuple(Output(dtype=kind, shape=shape) for kind in _types(outputs)),
        rows="tiles",
        sizes=sizes,
        variants=(_few_tokens(kernel, form), _many_tokens(kernel, form, sizes)),
    )


def _few_tokens(kernel: KernelSpec, form: ExpertFormat) -> VariantSpec:
    """Small tiles in many columns: what counts is that all of a device reads weights.

    A row of a block is 64 bytes of codes, or 32 bytes of packed ones: whole sectors of memory.
    """
    block_out = 32 if form.weights is None else 64
    deep = replace(kernel, num_stages=5)  # one or two programs must fill a multiprocessor's queue
    return _with_blocks(deep, form, min_tokens=0, pairs=_SMALL_TILE, block_out=block_out)


def _many_tokens(kernel: KernelSpec, form: ExpertFormat, sizes: ExpertSizes) -> VariantSpec:
    """Large tiles, from where an expert's pairs fill more than a small one on average."""
    min_tokens = -(-_SMALL_TILE * sizes.num_experts // sizes.num_chosen)
    pairs = _TILE[form.base]
    return _with_blocks(kernel, form, min_tokens=min_tokens, pairs=pairs, block_out=64)


def _with_blocks(
    kernel: KernelSpec, form: ExpertFormat, *, min_tokens: int, pairs: int, block_out: int
) -> VariantSpec:
    block_in = 32 if form.base == "fp32" else 64
    group = int(kernel.constants["GROUP"] or block_in)
    blocks = {
        "BLOCK_PAIRS": pairs,
        "BLOCK_IN": min(block_in, group),
        "BLOCK_OUT": block_out,
    }
    constants = {**kernel.constants, **blocks}
    columns = -(-int(constants["NUM_OUT"] or 0) // block_out)
    return VariantSpec(
        min_tokens=min_tokens,
        block_rows=pairs,
        columns=columns,
        kernel=replace(kernel, constants=constants),
    )


def _matrix(name: str, form: ExpertFormat) -> dict[str, str]:
    scale = {f"{name}_scale": form.base} if form.weights else {}
    return {name: form.codes, **scale}


def _parameters(
    inputs: dict[str, str], outputs: dict[str, str], *between: Parameter
) -> tuple[Parameter, ...]:
    """List a kernel's parameters as quick plugins of TensorRT pass them: scalars in the middle."""
    pointers = [
        [
            Parameter(name=name, source=f"{side} {index}", kind=_POINTERS[kind])
            for index, (name, kind) in enumerate(tensors.items())
        ]
        for side, tensors in (("input", inputs), ("output", outputs))
    ]
    return (*pointers[0], *between, *pointers[1])


def _types(tensors: dict[str, str]) -> tuple[str, ...]:
    return tuple(_TENSORRT[kind] for kind in tensors.values())


def _power_of_2(size: int) -> int:
    """Round up to a power of 2."""
    return 1 << (size - 1).bit_length()


def _check(sizes: ExpertSizes, form: ExpertFormat, *, num_in: int) -> None:
    found = []
    if form.base not in BASES:
        found.append(f"base {form.base}, expected one of {', '.join(BASES)}")
    if form.weights is not None and form.codes not in CODES:
        found.append(f"weights in {form.codes}, expected the base type or {', '.join(CODES)}")
    if form.codes == "int4" and (sizes.width % 2 or sizes.inner % 2):
        found.append(f"int4 rows of {sizes.width} and {sizes.inner}, expected even numbers")
    group = _group(form, num_in)
    if group and (group < 16 or group != _power_of_2(group) or num_in % group):
        found.append(
            f"groups of {group}, expected all {num_in} inputs or a power of 2 from 16 "
            "that divides them"
        )
    if found:
        raise UnsupportedError(
            describe_problems("experts in kernels", found) + "; build with --no-plugins"
        )


def _group(form: ExpertFormat, num_in: int) -> int:
    """Inputs that share a scale; 0: all of them, or there is no scale."""
    group = form.weights.group if form.weights else None
    return 0 if group in (None, num_in) else group
