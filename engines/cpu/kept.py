"""What target `cpu` makes of each parameter of a recipe: codes in blocks, stored numbers, or fp32.

Arithmetic on a recipe, for estimates; what the passes do to a graph that is there they decide by
what they find in it.
"""

from enum import Enum

from export.recipe.recipe import PartRecipe
from export.recipe.sizes import BASE_BYTES, Parameter, recipe_of, stored_bytes

from ..work import Work

_STOCK_SCALE_BYTES = 8
"""ONNX Runtime keeps a scale in fp32, and a sum beside it."""


class Form(Enum):
    """How the numbers of a parameter lie in memory while a model runs."""

    BLOCKS = "codes in blocks"
    STORED = "as they are stored, by our kernels alone"
    MAPPED = "as they are stored, by ONNX Runtime"
    WIDE = "in fp32, made when the graph is loaded"


def form_of(work: Work, parameter: Parameter) -> Form:
    """Tell what the lowering makes of a parameter of a graph."""
    part = recipe_of(parameter, work.recipe)
    if part is not None:
        return Form.BLOCKS if _keeps_codes(work, parameter, part) else Form.WIDE
    if parameter.part == "kv_b" and work.recipe.cache and work.recipe.may_round_activations:
        return Form.STORED
    is_mapped = parameter.part == "experts" and work.recipe.base == "fp32"
    return Form.MAPPED if is_mapped else Form.WIDE


def kept_bytes(work: Work, parameter: Parameter) -> int:
    """Count what lies in memory for a parameter: with our kernels, where these have one for it."""
    form = form_of(work, parameter)
    if form is Form.BLOCKS:
        return block_bytes(work, parameter)
    if form is Form.STORED:
        return stored_bytes(parameter, work.recipe).codes
    return 4 * parameter.count


def stock_bytes(work: Work, parameter: Parameter) -> int:
    """Count the same where ONNX Runtime's own kernels run."""
    if form_of(work, parameter) is Form.BLOCKS:
        return _codes_bytes(work, parameter) + _STOCK_SCALE_BYTES * _num_scales(work, parameter)
    return 4 * parameter.count


def block_bytes(work: Work, parameter: Parameter) -> int:
    """Count what the build writes for a parameter whose codes stay: codes, a scale a block."""
    scale_bytes = BASE_BYTES[work.recipe.base]
    return _codes_bytes(work, parameter) + scale_bytes * _num_scales(work, parameter)


def runs_all_experts(work: Work) -> bool:
    """Tell whether every expert is computed for every token.

    No operator of ONNX Runtime rounds between the two halves as a recipe says.
    """
    part = work.recipe.parts.get("experts")
    return part is not None and part.activations is not None and not _rounds_alike(work, part)


def read_share(work: Work, parameter: Parameter) -> float:
    """Give the share of a parameter that is read for one token."""
    is_whole = parameter.part == "experts" and runs_all_experts(work)
    return 1.0 if is_whole else float(parameter.read)


def _keeps_codes(work: Work, parameter: Parameter, part: PartRecipe) -> bool:
    if parameter.part == "kv_b" or part.weights.codes not in ("int4", "int8"):
        return False
    rounds = work.recipe.may_round_activations
    if part.weights.codes == "int8" and not rounds:
        return False  # ONNX Runtime has no kernel for it that rounds nothing
    if parameter.part == "experts":
        is_rounded = part.activations is not None
        return work.block_of(parameter) > 0 and (not is_rounded or _rounds_alike(work, part))
    return part.weights.codes == "int8" or parameter.shape[-1] % 2 == 0


def _rounds_alike(work: Work, part: PartRecipe) -> bool:
    """Whether rounding in blocks may take the place of the recipe's."""
    acts = part.activations
    return work.recipe.may_round_activations and acts is not None and acts.codes == "int8"


def _codes_bytes(work: Work, parameter: Parameter) -> int:
    part = recipe_of(parameter, work.recipe)
    bits = 8 if part is None else part.weights.bits
    return _num_scales(work, parameter) * work.block_of(parameter) * bits // 8


def _num_scales(work: Work, parameter: Parameter) -> int:
    return parameter.outputs * -(-parameter.inputs // work.block_of(parameter))
