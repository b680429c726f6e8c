"""The released depth from two layers on disk: the last one's files serve all layers behind it.

Every layer still has weights of its own in memory where they are packed, and reads them: packing
copies for each session. Only the disk holds them once: 1.6 GB instead of 17 GB in int4, 2.9 GB
instead of 33 GB in int8. It says nothing on opening from a cold disk and on mapped weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.recipe.recipe import Recipe

WRITTEN = (0, 1)
"""The dense layer and the first one with experts."""


def write_repeated(folder: Path, recipe: "Recipe", *, max_tokens: int) -> None:
    """Write an artifact of all layers for target `cpu`; a minute.

    Args:
        folder: gets it; must not exist.
        recipe: any with int4 or int8 codes.
        max_tokens: capacity of the cache.
    """
    from runtime.artifact.manifest import MODEL_FOLDER
    from runtime.config import KimiVLConfig

    from .full_artifact import write_full_artifact

    write_full_artifact(folder, recipe, max_tokens=max_tokens, layers=WRITTEN)
    config = KimiVLConfig.load(folder / MODEL_FOLDER / "config.json")
    repeat_last_layer(folder, config.decoder.num_layers)


def repeat_last_layer(folder: Path, num_layers: int) -> None:
    """Let the files of an artifact's last layer be those of more layers.

    Args:
        folder: of the artifact; its manifest is written anew.
        num_layers: how many there are then.
    """
    from runtime.artifact.manifest import Manifest

    manifest = Manifest.read(folder)
    last = manifest.layers[-1]
    targets = {
        name: replace(target, graphs=_repeated(target.graphs, last, num_layers))
        for name, target in manifest.targets.items()
    }
    graphs = _repeated(manifest.graphs, last, num_layers)
    layers = (*manifest.layers, *range(last + 1, num_layers))
    replace(manifest, layers=layers, graphs=graphs, targets=targets).write(folder)


def _repeated(graphs: Mapping[str, str], last: int, num_layers: int) -> dict[str, str]:
    from runtime.names import layer_name

    more = {layer_name(layer): graphs[layer_name(last)] for layer in range(last + 1, num_layers)}
    return {**graphs, **more}
