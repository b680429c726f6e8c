"""What each graph of an ONNX Runtime target takes and gives, checked when it is loaded.

A graph that was exchanged for another one is refused here, and not in the middle of an answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import onnxruntime as ort

from .. import names
from ..artifact.folder import Artifact
from ..config import KimiVLConfig, VisionConfig

FLOAT, INTEGER = "tensor(float)", "tensor(int64)"
"""As ONNX Runtime calls them."""


class Tensor(NamedTuple):
    """An input or an output."""

    name: str
    dtype: str
    sizes: tuple[int | None, ...]
    """Of the axes; None where it differs from call to call."""


class Contract(NamedTuple):
    """Everything that a graph takes and gives, in order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def session_problems(
    artifact: Artifact,
    config: KimiVLConfig,
    sessions: Mapping[str, ort.InferenceSession],
    contracts: Mapping[str, Contract],
    *,
    may_give_more: bool,
) -> list[str]:
    """List how loaded graphs, and the embedding, differ from what an engine makes of them.

    Args:
        artifact: opened.
        config: of its checkpoint.
        sessions: of the graphs, by name.
        contracts: of some of these.
        may_give_more: whether outputs may follow those of the contract, as taps do.
    """
    problems: list[str] = []
    for name, contract in contracts.items():
        inputs, outputs = sessions[name].get_inputs(), sessions[name].get_outputs()
        given = outputs[: len(contract.outputs)] if may_give_more else outputs
        problems += differences(f"{name} takes", inputs, contract.inputs)
        problems += differences(f"{name} gives", given, contract.outputs)
    rows = (config.decoder.vocab_size, config.decoder.width)
    if artifact.manifest.embedding.shape != rows:
        problems.append(f"embedding is {artifact.manifest.embedding.shape}, expected {rows}")
    return sorted(problems)


def vision_contract(vision: VisionConfig, merged: Tensor) -> Contract:
    """Say what the vision graph takes of an image."""
    return Contract(
        inputs=(
            Tensor(names.PATCHES, FLOAT, (None, None, vision.patch_values)),
            Tensor(names.ROW_WEIGHTS, FLOAT, (None, vision.table_height)),
            Tensor(names.COLUMN_WEIGHTS, FLOAT, (None, vision.table_width)),
        ),
        outputs=(merged,),
    )


def differences(
    what: str,
    found: Sequence[Any],
    expected: Sequence[Tensor],
) -> list[str]:
    """Say in which values a graph differs from its contract; nothing if it does not."""
    if [value.name for value in found] != [tensor.name for tensor in expected]:
        listed = ", ".join(value.name for value in found) or "nothing"
        return [f"{what} {listed}, expected {', '.join(tensor.name for tensor in expected)}"]
    return [
        f"{what} {tensor.name} as {value.type} {value.shape}"
        for value, tensor in zip(found, expected, strict=True)
        if value.type != tensor.dtype or not _fits(value.shape, tensor.sizes)
    ]


def _fits(shape: Sequence[object], sizes: tuple[int | None, ...]) -> bool:
    """Compare axis by axis; an axis whose size only the run knows fits every size."""
    return len(shape) == len(sizes) and all(
        not isinstance(found, int) or size is None or found == size
        for found, size in zip(shape, sizes, strict=True)
    )
