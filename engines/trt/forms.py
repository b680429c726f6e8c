"""Which form of the experts a recipe gets on given GPUs, and the ops of our plugins for a model."""

from collections.abc import Sequence

from export.recipe.recipe import Recipe
from runtime.config import DecoderConfig

from ..kernels.compile import COMPILED, FIRST_WITH_FP8
from ..kernels.ops import grouped_down_op, grouped_up_op, router_op, sort_op
from ..kernels.specs import ExpertFormat, ExpertSizes, OpSpec
from .passes.conditional_experts import GATHERED
from .passes.layer_experts import SMS as MOE_LAYER_SMS
from .passes.options import ExpertsForm

WITHOUT_KERNELS = ("nvfp4",)
"""Formats of experts that our kernels do not read."""


def experts_form(recipe: Recipe, sms: Sequence[int], *, use_plugins: bool) -> ExpertsForm:
    """Choose our kernels where they exist for the recipe and every GPU, else standard ops.

    Without kernels, plain numbers on cards with TensorRT's own MoE layer take that; other formats
    gather the chosen experts' matrices for few tokens and compute all experts for many
    (`conditional`: the fewer bytes of the two), or always compute all where no branch is possible.

    Args:
        recipe: says how experts are stored.
        sms: compute capabilities, as in (89, 120).
        use_plugins: whether kernels may be used at all.
    """
    part = recipe.parts.get("experts")
    codes = part.weights.codes if part else recipe.base
    least = FIRST_WITH_FP8 if codes == "fp8" else min(COMPILED)
    has_kernels = codes not in WITHOUT_KERNELS and all(sm in COMPILED and sm >= least for sm in sms)
    if use_plugins and has_kernels:
        return "plugin"
    if part is None and sms and set(sms) <= set(MOE_LAYER_SMS):
        return "layer"
    return "conditional" if (codes if part else "plain") in GATHERED["external"] else "dense"


def plugin_ops(config: DecoderConfig, recipe: Recipe) -> list[OpSpec]:
    """List the ops that our plugins implement in every MoE layer of a model.

    Raises:
        UnsupportedError: there are no kernels for the recipe's experts.
    """
    sizes = ExpertSizes(
        width=config.width,
        inner=config.expert_width,
        num_experts=config.num_experts,
        num_chosen=config.experts_per_token,
    )
    part = recipe.parts.get("experts")
    form = ExpertFormat(base=recipe.base, weights=part.weights if part else None)
    return [
        router_op(sizes, scale=config.routed_scale, normalize=config.normalize_scores),
        sort_op(sizes),
        grouped_up_op(sizes, form),
        grouped_down_op(sizes, form),
    ]
