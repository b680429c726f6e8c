"""The embedding table of an artifact, as the runtime reads it, against what its recipe says.

The runtime reads by the manifest's record of the table; here the same bytes are read by the recipe
and the sizes of the model, so that a record which misnames type or shape is found.
"""

import numpy as np
import torch

from export.graphs import DTYPES
from export.recipe.reading import recipe_from_values
from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig
from runtime.engine.embedding import EmbeddingTable

from .parity import relative_error

_SEED = 20262
_ROWS = 256


def measure_embedding(artifact: Artifact, config: KimiVLConfig) -> float:
    """Return max|a - b| / max|b| over rows of the whole table, its ends among them.

    Args:
        artifact: opened, hence checked.
        config: sizes of the model.

    Returns:
        The figure, 0 for the same numbers; infinite if the table has another shape.
    """
    shape = (config.decoder.vocab_size, config.decoder.width)
    if artifact.manifest.embedding.shape != shape:
        return float("inf")
    drawn = np.random.default_rng(_SEED).integers(0, shape[0], _ROWS)
    ids = np.concatenate([drawn, [0, shape[0] - 1]]).astype(np.int64)
    expected = _rows_by_recipe(artifact, shape, torch.from_numpy(ids))
    return relative_error(EmbeddingTable(artifact).rows(ids), expected.numpy())


def _rows_by_recipe(artifact: Artifact, shape: tuple[int, int], ids: torch.Tensor) -> torch.Tensor:
    """Read rows (N, C) in fp32, in the type that the recipe stores them in."""
    manifest = artifact.manifest
    recipe = recipe_from_values(manifest.precision, manifest.recipe, "the manifest's recipe")
    dtype = DTYPES[recipe.base] if recipe.embedding is None else torch.int8
    path, count = str(artifact.folder / manifest.embedding.path), shape[0] * shape[1]
    table = torch.from_file(path, size=count, dtype=dtype).view(shape)
    rows = table[ids].float()
    if recipe.embedding is None:
        return rows
    scales = torch.from_file(
        str(artifact.folder / (manifest.embedding.scales or "")), size=shape[0], dtype=torch.float32
    )
    return rows * scales[ids, None]
