"""The precision audit: what a plan really computes in, against what was wanted.

Three kinds of evidence, the weaker ones first to hand:

1. types of the parsed network, which bind TensorRT because the network is strongly typed;
2. the size of the plan: weights that were widened on the way would show;
3. the engine inspector, which sees the layers of the finished plan and needs the GPU.

An audit says which of them its verdict rests on.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.recipe.recipe import Recipe
from export.recipe.sizes import Parameter, recipe_of
from runtime.errors import GateError, describe_problems

from .builder import BuiltPlan
from .facts import NODE_PATH, Facts, node_path
from .home import Home
from .network import ParsedNetwork
from .products import Precision, Product, find_products

TYPES = "types of the parsed network"
SIZE = "size of the plan"
INSPECTOR = "engine inspector"

_PLACE = re.compile(r"^\d+\.")
"""Of a layer in a chain of several."""

_FEW_TOKENS = "/ few (then_branch) /"
"""In the nodes of `passes.conditional_experts` that gather."""

KERNELS_BYTES = 32 << 20
"""The most that a plan held besides weights, for each profile.

Source: decoder layers of the released sizes whose weights are inputs; NVFP4 had most, 25 MiB.
"""

Wanted = Callable[[Product], Precision | None]
"""What a product should be computed in; None where nothing is asked."""

_TENSOR_TYPES = {"nvfp4": "fp4"}
"""Formats whose codes have another name as a tensor's type."""

_INSPECTED = (
    (re.compile(r"\bbf(loat)?16\b", re.IGNORECASE), "bf16"),
    (re.compile(r"\b(fp16|half)\b", re.IGNORECASE), "fp16"),
    (re.compile(r"\b(fp32|float)\b", re.IGNORECASE), "fp32"),
    (re.compile(r"\bfp8\b", re.IGNORECASE), "fp8"),
    (re.compile(r"\bfp4\b", re.IGNORECASE), "fp4"),
    (re.compile(r"\bint8\b", re.IGNORECASE), "int8"),
    (re.compile(r"\bint4\b", re.IGNORECASE), "int4"),
)
"""How the inspector writes types: `Row major linear FP16 format`, `Half`."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found out about one plan."""

    plan: Path
    products: tuple[Product, ...]
    evidence: tuple[str, ...]
    contradictions: tuple[str, ...]
    """Where the size of the plan or the inspector speaks against the types."""

    def share(self, wanted: Wanted) -> float:
        """Compute which share of the multiply-adds that something is asked of is as wanted."""
        judged = [(one, wanted(one)) for one in self.products]
        asked = sum(one.multiply_adds for one, precision in judged if precision is not None)
        right = sum(one.multiply_adds for one, precision in judged if precision == one.precision)
        return right / asked if asked else 1.0

    def exceptions(self, wanted: Wanted) -> list[str]:
        """List the products that are not as wanted, the most work first."""
        wrong = [one for one in self.products if wanted(one) not in (None, one.precision)]
        wrong.sort(key=lambda one: -one.multiply_adds)
        return [
            f"node {one.node}{f' with {one.weight}' if one.weight else ''} is {one.precision}, "
            f"wanted {wanted(one)}"
            for one in wrong
        ]


def audit_plan(
    parsed: ParsedNetwork,
    plan: BuiltPlan,
    usual: Mapping[str, tuple[int, ...]],
    weight_inputs: Collection[str] = (),
) -> Audit:
    """Find out what a plan computes in.

    Args:
        parsed: the network that the plan was built from.
        plan: the plan.
        usual: shapes of the inputs with free sizes, for which the work is counted.
        weight_inputs: network inputs that hold weights.
    """
    products = find_products(parsed.facts_at(usual), weight_inputs)
    evidence, contradictions = [TYPES], list(size_contradictions(parsed.facts, plan))
    if judges_size(parsed.facts, plan):
        evidence.append(SIZE)
    inspected = inspect_plan(parsed.home, plan.path, usual)
    if inspected and any(one.node in inspected for one in products):
        evidence.append(INSPECTOR)
        contradictions += inspector_contradictions(products, inspected)
    return Audit(
        plan=plan.path,
        products=tuple(products),
        evidence=tuple(evidence),
        contradictions=tuple(contradictions),
    )


def wanted_by(recipe: Recipe, parameters: Sequence[Parameter]) -> Wanted:
    """Ask of each product with weights what a recipe says of them.

    Weights that are no parameter, and parameters that the recipe leaves alone, are to be in its
    base type, the router in fp32. Rows that were rounded are to be multiplied in the base type by a
    plugin; where experts are gathered, which is all reading; and where the weights have another
    format, since no card multiplies int4 by FP8. Nothing is asked of products of activations.

    Args:
        recipe: the recipe.
        parameters: of the graph; weights bear the end of their names.
    """

    def wanted(product: Product) -> Precision | None:
        if not product.weight:
            return None
        name = f".{_PLACE.sub('', product.weight)}"
        parameter = next((one for one in parameters if f".{one.name}".endswith(name)), None)
        part = None if parameter is None else recipe_of(parameter, recipe)
        if parameter is None or part is None:
            base = "fp32" if parameter is not None and parameter.is_router else recipe.base
            return Precision(weights=base, activations=base)
        weights, rounding = part.weights.codes, part.activations
        gathers = product.kind == "PLUGIN_V3" or _FEW_TOKENS in product.node
        rounds = parameter.part != "kv_b" and not gathers
        is_alike = rounding is not None and rounding.codes == weights
        activations = weights if rounds and is_alike else recipe.base
        return Precision(
            weights=_TENSOR_TYPES.get(weights, weights),
            activations=_TENSOR_TYPES.get(activations, activations),
        )

    return wanted


def check_audit(audit: Audit, wanted: Wanted, least: float) -> None:
    """Refuse a plan of which too little is in the wanted precision.

    Args:
        audit: of the plan.
        wanted: what each product should be computed in.
        least: the smallest share of the multiply-adds that may be as wanted, 0 to 1.

    Raises:
        GateError: the share is smaller, or other evidence contradicts the types; names the nodes.
    """
    share, problems = audit.share(wanted), list(audit.contradictions)
    if share < least:
        problems += audit.exceptions(wanted)
    if problems:
        where = (
            f"{audit.plan}: {share:.1%} of the multiply-adds are in the wanted precision, "
            f"{least:.1%} are asked for (by {', '.join(audit.evidence)})"
        )
        raise GateError(describe_problems(where, problems))


def judges_size(facts: Facts, plan: BuiltPlan) -> bool:
    """Tell whether weights are large enough to be seen beside a plan's kernels."""
    return _weights_bytes(facts) > _kernels_bytes(plan)


def size_contradictions(facts: Facts, plan: BuiltPlan) -> Iterator[str]:
    """Compare a plan's size with its weights, which it may hold once for each profile."""
    weights = _weights_bytes(facts)
    most = weights * max(1, plan.num_profiles) + _kernels_bytes(plan)
    if plan.size_bytes > most:
        yield (
            f"the plan has {plan.size_bytes} bytes, and {weights} of weights explain at most {most}"
        )
    if judges_size(facts, plan) and plan.size_bytes < weights:
        yield f"the plan has {plan.size_bytes} bytes, fewer than its weights ({weights})"


def _weights_bytes(facts: Facts) -> int:
    return sum(one.size_bytes for one in facts.constants)


def _kernels_bytes(plan: BuiltPlan) -> int:
    return KERNELS_BYTES * max(1, plan.num_profiles)


def inspect_plan(
    home: Home, plan: Path, usual: Mapping[str, tuple[int, ...]]
) -> dict[str, set[str]] | None:
    """Ask the engine inspector for the types of every node; None where the plan cannot be loaded.

    Loading needs a GPU that the plan was built for.
    """
    with home.collecting():
        engine = home.trt.Runtime(home.logger).deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            return None
        strategy = home.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy)
        if context is None:
            return None
        for name, shape in usual.items():
            context.set_input_shape(name, shape)
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        text = inspector.get_engine_information(home.trt.LayerInformationFormat.JSON)
    return types_by_node(json.loads(text))


def types_by_node(information: Mapping[str, Any]) -> dict[str, set[str]]:
    """Read the types of inputs and outputs of each ONNX node from the inspector's JSON."""
    found: dict[str, set[str]] = {}
    for layer in information.get("Layers", []):
        if not isinstance(layer, dict):  # a bare name: the plan was built without details
            continue
        tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
        texts = [str(tensor.get("Format/Datatype", "")) for tensor in tensors]
        types = {name for text in texts for pattern, name in _INSPECTED if pattern.search(text)}
        for match in NODE_PATH.finditer(str(layer.get("Metadata", ""))):
            found.setdefault(node_path(match[0]), set()).update(types)
    return found


def inspector_contradictions(
    products: Collection[Product], inspected: Mapping[str, set[str]]
) -> Iterator[str]:
    """Find products whose layers in the plan have neither of the types of the parsed network."""
    for one in products:
        types = inspected.get(one.node, set())
        if types and not types & {one.precision.activations, one.precision.weights}:
            yield (
                f"node {one.node} is {one.precision} in the network and "
                f"{', '.join(sorted(types))} in the plan"
            )
