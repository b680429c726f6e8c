"""One graph of an artifact against the torch module it was traced from, on the same inputs.

The module is filled from the artifact's own neutral weights, so no checkpoint is needed, and
computes in fp32: that is what a graph with narrower weights must mean.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.graph.quantise import input_scale_name, scale_name, whole_name
from export.graph.weights_file import hold
from export.graph.widen import NARROW, computed_values, widen_graph
from export.graph.widen_fp4 import has_fp4, widen_fp4
from export.graphs import GraphPlan
from export.quantised.matrix import grouped
from export.quantised.storage import quantised_places
from export.recipe.reading import recipe_from_values
from export.recipe.recipe import Recipe, WeightFormat
from runtime import names
from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig
from runtime.engine.onnx_session import session_from_bytes
from runtime.prompt.patches import position_weights

from .own_rounding import own_rounding, replaced_ports, round_in_blocks
from .scales.rounding import round_cache, round_inputs

Arrays = Mapping[str, NDArray[np.generic]]
CACHE_TENSORS = (names.CACHE, names.CACHE_KEYS, names.CACHE_SCALES)
"""What a layer with an int8 cache takes and gives in the place of one cache."""
_ADDED = (names.BEST, names.ENERGY)
"""Outputs that a lowering adds: what they say follows from the logits, and the module has none."""
_SEED = 20260
_BATCH, _TOKENS, _CACHED = 2, 5, 12
_LENGTHS = (7, 2)
_GRID = (6, 10)


def measure_graph(artifact: Artifact, path: str, plan: GraphPlan, config: KimiVLConfig) -> float:
    """Return the largest max|a - b| / max|b| over a graph's outputs.

    Args:
        artifact: opened, hence checked.
        path: of the graph to judge, neutral or lowered.
        plan: says which module it was traced from; must build in fp32.
        config: sizes of the model.

    Returns:
        The figure; infinite if an output of the graph is not finite.
    """
    module = plan.build()
    manifest = artifact.manifest
    recipe = recipe_from_values(manifest.precision, manifest.recipe, str(artifact.folder))
    own = own_rounding(ir.load(artifact.folder / path), module)
    replaced = replaced_ports(module, own)
    fill_from_graph(module, artifact.folder / manifest.graphs[plan.name], recipe, but_not=replaced)
    round_in_blocks(module, own)
    round_cache(module, recipe, config.decoder.latent_rank)
    session = open_wide(artifact, path)
    inputs = fitted(example_inputs(plan, config), session)
    given = {**inputs, **_window_input(session)}
    if recipe.cache is not None and plan.is_layer:
        given = cached_as_codes(given, config.decoder.latent_rank, recipe.cache.group)
        inputs = {**inputs, names.CACHE: meaning_of_codes(given)}
    with torch.no_grad():
        expected = module(*(torch.from_numpy(array) for array in inputs.values()))
    expected = expected if isinstance(expected, tuple) else (expected,)
    wanted = [one.name for one in session.get_outputs() if one.name not in _ADDED]
    found = session.run(wanted, given)
    if recipe.cache is not None and plan.is_layer:
        codes = dict(zip(CACHE_TENSORS, found[1 : 1 + len(CACHE_TENSORS)], strict=True))
        found = [found[0], meaning_of_codes(codes), *found[1 + len(CACHE_TENSORS) :]]
    return max(relative_error(a, b.numpy()) for a, b in zip(found, expected, strict=True))


def relative_error(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """max|a - b| / max|b| over finite values; infinite where others are not the same, or shapes."""
    if found.shape != expected.shape:
        return float("inf")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not (np.isfinite(a) == finite).all() or not (a[~finite] == b[~finite]).all():
        return float("inf")
    a, b = a[finite], b[finite]
    scale = float(np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0)) / (scale or 1.0)


def example_inputs(plan: GraphPlan, config: KimiVLConfig) -> dict[str, NDArray[np.generic]]:
    """Make inputs that reach every part of a graph: other lengths in each slot, an oblong image."""
    rng = np.random.default_rng(_SEED)
    vision, decoder = config.vision, config.decoder

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    made: dict[str, NDArray[np.generic]] = {
        names.PATCHES: normal(*_GRID, vision.patch_values),
        names.ROW_WEIGHTS: position_weights(_GRID[0], vision.table_height),
        names.COLUMN_WEIGHTS: position_weights(_GRID[1], vision.table_width),
        names.MERGED: normal(7, 4, vision.width),
        names.HIDDEN: normal(_BATCH, _TOKENS, decoder.width),
        names.CACHE: normal(_BATCH, 1, _CACHED, decoder.latent_width),
        names.LENGTHS: np.array(_LENGTHS, dtype=np.int64),
        names.ROWS: np.array([0, _TOKENS - 1, _BATCH * _TOKENS - 1], dtype=np.int64),
    }
    return {name: made[name] for name in plan.spec.inputs}


def open_wide(artifact: Artifact, path: str) -> ort.InferenceSession:
    """Load a graph with 16-bit values computed in fp32 and FP4 in int8, as its target need not."""
    content, place = artifact.read_checked(path), artifact.folder / path
    model = ir.serde.deserialize_model(onnx.load_from_string(content))
    if _is_narrow(model) or has_fp4(model):
        return wide_session(model, place)
    return session_from_bytes(content, place)


def wide_session(model: ir.Model, place: Path) -> ort.InferenceSession:
    """Load a model, changed in place, with 16-bit values computed in fp32 and FP4 in int8.

    Args:
        model: or a part of one.
        place: where its graph lies.
    """
    ir.external_data.set_base_dir(model.graph, place.parent)
    hold(model.graph, widen_fp4(model))
    if _is_narrow(model):
        widen_graph(model)
    return session_from_bytes(ir.serde.serialize_model(model).SerializeToString(), place)


def _is_narrow(model: ir.Model) -> bool:
    return any(value.dtype in NARROW for value in computed_values(model))


def fitted(
    inputs: dict[str, NDArray[np.generic]], session: ort.InferenceSession
) -> dict[str, NDArray[np.generic]]:
    """Give the cache the capacity of a graph that has a fixed one; the rows behind are zero."""
    capacity = next((one.shape[2] for one in session.get_inputs() if one.name == names.CACHE), None)
    if not isinstance(capacity, int):
        return inputs
    cache = inputs[names.CACHE]
    whole = np.zeros((*cache.shape[:2], capacity, cache.shape[3]), dtype=cache.dtype)
    whole[:, :, : cache.shape[2]] = cache
    return {**inputs, names.CACHE: whole}


def _window_input(session: ort.InferenceSession) -> dict[str, NDArray[np.generic]]:
    """Measure the rows in use for a graph that wants to know."""
    wants = any(one.name == names.WINDOW for one in session.get_inputs())
    return {names.WINDOW: np.zeros(_CACHED, dtype=np.int32)} if wants else {}


def cached_as_codes(inputs: Arrays, rank: int, group: int) -> dict[str, NDArray[np.generic]]:
    """Turn the cache (B, 1, T, R + rope) among a layer's inputs into codes, scales and keys."""
    rows = inputs[names.CACHE].astype(np.float32)
    groups = rows[..., :rank].reshape(*rows.shape[:-1], -1, group)
    scales = np.abs(groups).max(axis=-1) / np.float32(127)
    codes = np.round(groups / scales[..., None]).astype(np.int8)
    made: dict[str, NDArray[np.generic]] = {
        names.CACHE: codes.reshape(*rows.shape[:-1], rank),
        names.CACHE_SCALES: scales,
        names.CACHE_KEYS: np.ascontiguousarray(rows[..., rank:]),
    }
    return {**inputs, **made}


def meaning_of_codes(cache: Arrays) -> NDArray[np.float32]:
    """Give the rows (B, 1, T, R + rope) that codes, scales and keys stand for."""
    codes, keys, scales = (cache[name].astype(np.float32) for name in CACHE_TENSORS)
    groups = codes.reshape(*scales.shape, -1) * scales[..., None]
    return np.concatenate([groups.reshape(codes.shape), keys], axis=-1)


def fill_from_graph(
    module: nn.Module, neutral_graph: Path, recipe: Recipe, *, but_not: Collection[str] = ()
) -> None:
    """Make a module compute in fp32 what a neutral graph means, from the graph's own weights.

    Args:
        module: one of `export.modules`.
        neutral_graph: its file.
        recipe: of the artifact.
        but_not: submodules whose input is not rounded as the recipe says.
    """
    stored = _StoredWeights(neutral_graph)
    places = {place.parameter: part for place, part in quantised_places(module, recipe)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            part = places.get(name)
            value = stored.plain(name) if part is None else stored.meaning(name, part.weights)
            parameter.copy_(value)
    round_inputs(module, recipe, stored.input_scales(places), but_not=but_not)


class _StoredWeights:
    """The initialisers of a neutral graph."""

    def __init__(self, neutral_graph: Path) -> None:
        self._path = neutral_graph
        self._found = ir.load(neutral_graph).graph.initializers

    def plain(self, name: str) -> Tensor:
        """A tensor as it is stored, fp32."""
        tensor = self._found[name].const_value if name in self._found else None
        if tensor is None:
            raise RuntimeError(f"{self._path}: {name} has no weights")
        return torch.from_numpy(tensor.numpy().astype(np.float32))

    def meaning(self, name: str, form: WeightFormat) -> Tensor:
        """What the codes of a parameter mean, fp32."""
        codes, step = self.plain(name), self.plain(scale_name(name))
        if form.codes == "nvfp4":
            step = step * self.plain(whole_name(name))
        step = step.reshape(*step.shape[:-1], 1, step.shape[-1])  # one scale for each group
        if form.group is None and codes.dim() == 3:
            step = step.reshape(len(codes), 1, 1, -1)
        return (grouped(codes, form) * step).reshape(codes.shape)

    def input_scales(self, places: Iterable[str]) -> dict[str, Tensor]:
        """Scales of what meets parameters, where the graph has them."""
        names = {name: input_scale_name(name) for name in places}
        return {name: self.plain(key) for name, key in names.items() if key in self._found}
