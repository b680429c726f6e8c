"""`grouped_up` and `grouped_down` in the interpreter against numpy."""

from typing import Any, Literal, cast

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.kernels.ops import grouped_down_op, grouped_up_op
from engines.kernels.specs import ExpertFormat, ExpertSizes
from export.recipe.recipe import WeightFormat
from runtime.errors import UnsupportedError

from . import oracle
from .interpreter import Interpreter

Array = NDArray[Any]

BASE_TYPES: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}

# One rounding of the result; sums in fp32 of some hundred terms add less than 1e-5 of the largest.
ROUNDING = {"fp32": 2e-6, "fp16": 2**-11, "bf16": 2**-8}
OF_LARGEST = 1e-5

FORMATS = [
    ("fp32", "fp32", 0),
    ("fp16", "fp16", 0),
    ("bf16", "bf16", 0),
    ("fp16", "int8", 0),
    ("bf16", "fp8", 0),
    ("fp16", "int4", 32),
    ("bf16", "int4", 64),
    ("fp32", "int4", 0),
    ("fp32", "int8", 0),
]


def make_form(base: str, codes: str, group: int) -> ExpertFormat:
    if codes == base:
        return ExpertFormat(base=base, weights=None)
    known = cast(Literal["int8", "int4", "fp8"], codes)
    return ExpertFormat(base=base, weights=WeightFormat(codes=known, group=group or None))


def make_experts(rng: np.random.Generator, num_tokens: int, sizes: ExpertSizes, how: str) -> Array:
    shape = (num_tokens, sizes.num_chosen)
    if how == "one expert":
        return np.full(shape, sizes.num_experts - 2)
    if how == "one each":
        return np.arange(np.prod(shape)).reshape(shape) % sizes.num_experts
    order = np.argsort(rng.random((num_tokens, sizes.num_experts)), axis=1)
    return order[:, : sizes.num_chosen]


class Case:
    """Inputs of both halves, drawn from a seed."""

    def __init__(self, sizes: ExpertSizes, form: ExpertFormat, num_tokens: int, how: str) -> None:
        rng = np.random.default_rng(num_tokens)
        base = BASE_TYPES[form.base]
        up_shape = (sizes.num_experts, sizes.width, sizes.inner)
        down_shape = (sizes.num_experts, sizes.inner, sizes.width)
        self.sizes, self.form, self.num_tokens = sizes, form, num_tokens
        self.hidden = rng.standard_normal((num_tokens, sizes.width)).astype(base)
        self.inner = rng.standard_normal((num_tokens, sizes.num_chosen, sizes.inner)).astype(base)
        self.experts = make_experts(rng, num_tokens, sizes, how)
        self.scores = rng.uniform(0.1, 1, self.experts.shape).astype(np.float32)
        self.gate, self.up, self.down = (
            oracle.make_matrices(rng, shape, base, form.codes, form.group)
            for shape in (up_shape, up_shape, down_shape)
        )
        self.pairs = {
            name: array.astype(np.int32)
            for name, array in oracle.sort_by_expert(self.experts, sizes.num_experts)
            ._asdict()
            .items()
        }

    def poisoned(self, last: int) -> Array:
        return np.full((*self.experts.shape, last), np.nan, BASE_TYPES[self.form.base])

    def run_up(self, interpreter: Interpreter) -> Array:
        inputs = {"hidden": self.hidden, "experts": self.experts, **self.pairs}
        inputs["gate"] = self.gate.codes
        inputs["up"] = self.up.codes
        for name, matrices in (("gate_scale", self.gate), ("up_scale", self.up)):
            if matrices.scale is not None:
                inputs[name] = matrices.scale
        op = grouped_up_op(self.sizes, self.form)
        outputs = {"inner": self.poisoned(self.sizes.inner)}
        return interpreter.run(op, inputs, outputs, self.num_tokens)["inner"]

    def run_down(self, interpreter: Interpreter) -> Array:
        inputs = {"inner": self.inner, "scores": self.scores, **self.pairs}
        inputs["down"] = self.down.codes
        if self.down.scale is not None:
            inputs["down_scale"] = self.down.scale
        op = grouped_down_op(self.sizes, self.form)
        outputs = {"parts": self.poisoned(self.sizes.width)}
        return interpreter.run(op, inputs, outputs, self.num_tokens)["parts"]

    def check(self, found: Array, wanted: Array) -> None:
        error = np.abs(found.astype(np.float64) - wanted)
        allowed = ROUNDING[self.form.base] * np.abs(wanted) + OF_LARGEST * np.abs(wanted).max()
        assert (error <= allowed).all()  # false for a NaN, so that nothing may stay unwritten

    def check_both(self, interpreter: Interpreter) -> None:
        up = oracle.up(self.hidden, self.experts, self.gate.values, self.up.values)
        self.check(self.run_up(interpreter), up)
        down = oracle.down(self.inner, self.experts, self.scores, self.down.values)
        self.check(self.run_down(interpreter), down)


@pytest.mark.parametrize(("base", "codes", "group"), FORMATS)
@pytest.mark.parametrize("num_tokens", [1, 40])
def test_both_halves_are_those_of_float64_in_every_format(
    interpreter: Interpreter, base: str, codes: str, group: int, num_tokens: int
) -> None:
    # From 11 tokens the large tiles are used; each axis has a whole block and a piece of one.
    odd = {"width": 192, "inner": 128} if codes == "int4" else {"width": 83, "inner": 69}
    sizes = ExpertSizes(**odd, num_experts=2 if num_tokens > 1 else 5, num_chosen=2)
    Case(sizes, make_form(base, codes, group), num_tokens, "random").check_both(interpreter)


@pytest.mark.parametrize("how", ["one expert", "one each", "random"])
@pytest.mark.parametrize("num_tokens", [1, 3, 9, 40])
def test_skewed_routing_leaves_nothing_out(
    interpreter: Interpreter, num_tokens: int, how: str
) -> None:
    sizes = ExpertSizes(width=35, inner=21, num_experts=13, num_chosen=3)
    Case(sizes, make_form("fp16", "fp16", 0), num_tokens, how).check_both(interpreter)


def test_int4_rows_that_end_inside_a_block_are_read_whole(interpreter: Interpreter) -> None:
    sizes = ExpertSizes(width=96, inner=160, num_experts=3, num_chosen=2)
    Case(sizes, make_form("fp16", "int4", 32), 5, "random").check_both(interpreter)


def test_a_nan_stays_in_the_rows_of_its_token(interpreter: Interpreter) -> None:
    sizes = ExpertSizes(width=40, inner=24, num_experts=4, num_chosen=2)
    case = Case(sizes, make_form("fp32", "fp32", 0), 9, "random")
    clean = case.run_up(interpreter)
    case.hidden[3, 7] = np.nan
    done = case.run_up(interpreter)
    assert np.isnan(done[3]).all()
    others = np.arange(9) != 3
    assert np.array_equal(done[others], clean[others])


def test_a_group_of_all_inputs_is_one_scale_for_each_output() -> None:
    sizes = ExpertSizes(width=96, inner=64, num_experts=3, num_chosen=2)
    # 96 is no power of 2, and a group of 96 does not divide the inputs of the other half.
    assert grouped_up_op(sizes, make_form("fp16", "int4", 96)) == grouped_up_op(
        sizes, make_form("fp16", "int4", 0)
    )


def test_formats_that_kernels_cannot_read_are_refused_together() -> None:
    sizes = ExpertSizes(width=45, inner=64, num_experts=4, num_chosen=2)
    expected = "2 problems: int4 rows of 45 and 64, .*; groups of 48, expected all 45 inputs or"
    with pytest.raises(UnsupportedError, match=expected):
        grouped_up_op(sizes, make_form("fp16", "int4", 48))
    with pytest.raises(UnsupportedError, match=r"groups of 8, .*; build with --no-plugins"):
        grouped_down_op(sizes, make_form("fp16", "int4", 8))
    four = ExpertFormat(base="bf16", weights=WeightFormat(codes="nvfp4", group=16))
    with pytest.raises(UnsupportedError, match="weights in nvfp4, expected the base type or int8"):
        grouped_down_op(sizes, four)
