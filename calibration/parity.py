"""One graph of an artifact against the torch module it was traced from, on the same inputs.

The module is filled from the artifact's own neutral weights, so no checkpoint is needed, and
computes in fp32: that is what a graph with narrower weights must mean.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.graphs import GraphPlan
from runtime import names
from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig
from runtime.engine.onnx_session import open_session
from runtime.prompt.patches import position_weights

Arrays = Mapping[str, NDArray[np.generic]]
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
    _fill(module, artifact.folder / artifact.manifest.graphs[plan.name])
    inputs = example_inputs(plan, config)
    with torch.no_grad():
        expected = module(*(torch.from_numpy(array) for array in inputs.values()))
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = open_session(artifact, path).run(None, inputs)
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


def _fill(module: nn.Module, neutral_graph: Path) -> None:
    """Copy the weights of a neutral graph into the module it was traced from."""
    initializers = ir.load(neutral_graph).graph.initializers
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            tensor = initializers[name].const_value
            if tensor is None:
                raise RuntimeError(f"{neutral_graph}: {name} has no weights")
            parameter.copy_(_torch_tensor(tensor))


def _torch_tensor(tensor: ir.TensorProtocol) -> Tensor:
    array = tensor.numpy()
    if tensor.dtype == ir.DataType.BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())
