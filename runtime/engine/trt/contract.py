"""What each plan takes and gives, checked when it is loaded, before anything is bound to it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

from ... import names
from ...artifact.records import BoundWeight, CacheRecord, PlansRecord, TargetRecord
from ...config import KimiVLConfig
from ...errors import ArtifactError, describe_problems
from .plan import Plan

_BITS = {
    "FLOAT": 32,
    "HALF": 16,
    "BF16": 16,
    "FP8": 8,
    "FP4": 4,
    "INT64": 64,
    "INT32": 32,
    "INT8": 8,
    "INT4": 4,
    "UINT8": 8,
    "BOOL": 8,
}
"""Size of one number of TensorRT's types, in bits."""


_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
"""Types of cache tensors, as TensorRT calls them."""


def check_plans(
    where: str,
    plans: Mapping[str, Plan],
    record: PlansRecord,
    target: TargetRecord,
    config: KimiVLConfig,
) -> None:
    """Compare the loaded plans with what the engine will bind to them.

    Args:
        where: the artifact, for errors.
        plans: by the name of the engine.
        record: says which weights are bound.
        target: limits, and the cache tensors of a layer.
        config: sizes of the model.

    Raises:
        ArtifactError: a plan takes or gives something else; all such plans are listed.
    """
    problems: list[str] = []
    for name, plan in plans.items():
        graphs = record.engines[name].graphs
        inputs, outputs = _contract(graphs, target.cache)
        weights = record.engines[name].weights
        problems += _differences(f"{name} takes", set(plan.inputs), {*inputs, *weights})
        problems += _differences(f"{name} gives", set(plan.outputs), set(outputs))
        known = {one: weights[one] for one in weights if one in plan.inputs}
        problems += _wrong_sizes(name, plan, known)
        problems += _wrong_shapes(name, plan, _shapes(graphs, target, config))
    if problems:
        raise ArtifactError(
            describe_problems(where, sorted(problems))
            + "; these are not the plans of this model, build the target again"
        )


def cache_names(tensors: Iterable[str], num_layers: int) -> list[dict[str, str]]:
    """Say what a plan calls the cache tensors of each of its layers."""
    if num_layers == 1:
        return [{name: name for name in tensors}]
    return [
        {name: names.place_name(place, name) for name in tensors} for place in range(num_layers)
    ]


def _shapes(
    graphs: Sequence[str], target: TargetRecord, config: KimiVLConfig
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Give last axes, and types where there is but one, of what the engine reserves memory for."""
    width = config.decoder.width
    match graphs[0]:
        case names.VISION:
            return {names.PATCHES: ((config.vision.patch_values,), "FLOAT")}
        case names.PROJECTOR:
            return {names.FEATURES: ((width,), "")}
        case names.HEAD:
            return {
                names.HIDDEN: ((width,), ""),
                names.LOGITS: ((config.decoder.vocab_size,), "FLOAT"),
                names.BEST: ((-1,), "INT32"),
                names.ENERGY: ((-1,), "FLOAT"),
            }
    found: dict[str, tuple[tuple[int, ...], str]] = {
        names.HIDDEN: ((width,), ""),
        names.HIDDEN_OUT: ((width,), ""),
    }
    for called in cache_names(target.cache.tensors, len(graphs)):
        for name, one in target.cache.tensors.items():
            shape = (1, target.limits.max_tokens, one.width), _TYPES.get(one.dtype, one.dtype)
            found[called[name]] = found[names.output_of(called[name])] = shape
    return found


def _wrong_shapes(
    name: str, plan: Plan, expected: Mapping[str, tuple[tuple[int, ...], str]]
) -> Iterator[str]:
    for tensor, (sizes, dtype) in expected.items():
        if tensor not in (*plan.inputs, *plan.outputs):
            continue  # told by name
        shape, found = plan.shape(tensor), plan.dtype(tensor)
        if shape[-len(sizes) :] != sizes or (dtype and found != dtype):
            yield f"{name}: {tensor} is {found} {shape}, expected {dtype or 'any'} (..., {sizes})"


def _contract(graphs: Sequence[str], cache: CacheRecord) -> tuple[list[str], list[str]]:
    """Names that the engine binds at each run: inputs and outputs."""
    match graphs[0]:
        case names.VISION:
            return [names.PATCHES, names.ROW_WEIGHTS, names.COLUMN_WEIGHTS], [names.MERGED]
        case names.PROJECTOR:
            return [names.MERGED], [names.FEATURES]
        case names.HEAD:
            return [names.HIDDEN, names.ROWS], [names.LOGITS, names.BEST, names.ENERGY]
    layers = cache_names(cache.tensors, len(graphs))
    tensors = [name for called in layers for name in called.values()]
    given = [names.HIDDEN, *tensors, names.LENGTHS, names.WINDOW]
    return given, [names.HIDDEN_OUT, *map(names.output_of, tensors)]


def _differences(what: str, found: set[str], expected: set[str]) -> Iterator[str]:
    if found != expected:
        lacking, more = expected - found, found - expected
        words = [f"no {', '.join(sorted(lacking))}"] if lacking else []
        words += [f"also {', '.join(sorted(more))}"] if more else []
        yield f"{what} {' and '.join(words)}"


def _wrong_sizes(name: str, plan: Plan, weights: Mapping[str, BoundWeight]) -> Iterator[str]:
    for weight, bound in weights.items():
        expected = -(-prod(plan.shape(weight)) * _BITS.get(plan.dtype(weight), 0) // 8)
        if bound.length != expected:
            yield f"{name}: {weight} has {expected} bytes, {bound.length} are bound"
