"""The lowering for TensorRT, in the order of its passes."""

from collections.abc import Callable

from ...lowering import Pass
from ...passes.inline_bodies import InlineBodies
from ...passes.unique_names import UniqueNames
from .cache_window import ReadWindow
from .choose_best import ChooseBestByReduction
from .conditional_experts import ConditionalExperts
from .dense_experts import DenseExperts
from .external_weights import ExternalWeights, WeightInput, weight_inputs
from .gathered_experts import GatheredExperts
from .layer_experts import LayerExperts
from .options import ExpertsForm, LoweringOptions
from .plugin_experts import PluginExperts
from .scale_stacked_products import ScaleStackedProducts
from .share_fp4_scale import ShareFP4Scale
from .stack_rounding import StackRounding
from .static_cache import StaticCache
from .sum_router_products import SumRouterProducts
from .widen_mixed_products import WidenMixedProducts

__all__ = ["LoweringOptions", "WeightInput", "passes", "weight_inputs"]

_FORMS: dict[ExpertsForm, Callable[[LoweringOptions], Pass]] = {
    "plugin": lambda options: PluginExperts(options.sms),
    "gather": lambda options: GatheredExperts(options.weights),
    "dense": lambda options: DenseExperts(),
    "conditional": lambda options: ConditionalExperts(options.weights),
    "layer": lambda options: LayerExperts(options.sms),
}


def passes(options: LoweringOptions) -> list[Pass]:
    """Return the passes, to be run in this order."""
    found: list[Pass] = [StaticCache(options.max_tokens)]
    if options.cache_reads == "window":
        found.append(ReadWindow())
    found.append(_FORMS[options.experts](options))
    found += [SumRouterProducts(options.sms), InlineBodies(), StackRounding()]
    if options.weights == "external":
        found.append(ShareFP4Scale())
    found += [ScaleStackedProducts(), WidenMixedProducts(), ChooseBestByReduction()]
    if options.weights == "external":
        found.append(ExternalWeights())
    return [*found, UniqueNames()]
