"""What each graph of an ONNX Runtime target takes and gives, checked when it is loaded.

A graph that was exchanged for another one is refused here, and not in the middle of an answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import onnxruntime as ort

from .. import names
from ..artifact.folder import Artifact
from ..artifact.records import TargetRecord
from ..config import KimiVLConfig, VisionConfig
from ..errors import ArtifactError, describe_problems

FLOAT, INTEGER = "tensor(float)", "tensor(int64)"
"""As ONNX Runtime calls them."""
_CACHE_TYPES = {"float32": FLOAT, "int8": "tensor(int8)"}
"""Types of cache tensors that this engine can hold, as ONNX Runtime calls them."""


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


def check_graphs(
    artifact: Artifact,
    target: TargetRecord,
    config: KimiVLConfig,
    sessions: Mapping[str, ort.InferenceSession],
) -> None:
    """Compare the loaded graphs with what the engine will ask of them.

    Raises:
        ArtifactError: a graph takes or gives something else; all such graphs are listed.
    """
    kinds = {one.dtype for one in target.cache.tensors.values()}
    if not kinds <= _CACHE_TYPES.keys():
        raise ArtifactError(
            f"{artifact.folder}: a cache of {', '.join(sorted(kinds - _CACHE_TYPES.keys()))}; "
            f"ONNX Runtime's CPU engine runs {' and '.join(_CACHE_TYPES)} ones"
        )
    contracts = _contracts(artifact, target, config)
    problems = session_problems(artifact, config, sessions, contracts, may_give_more=True)
    if problems:
        raise ArtifactError(
            describe_problems(str(artifact.folder), problems)
            + "; these are not the graphs of this model, compile it again into another folder"
        )


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


def _contracts(
    artifact: Artifact, target: TargetRecord, config: KimiVLConfig
) -> dict[str, Contract]:
    vision, width = config.vision, config.decoder.width
    hidden = (None, None, width)
    merged = Tensor(names.MERGED, FLOAT, (None, vision.merge**2, vision.width))
    layer = _layer_contract(target, width)
    return {
        names.VISION: vision_contract(vision, merged),
        names.PROJECTOR: Contract(
            inputs=(merged,), outputs=(Tensor(names.FEATURES, FLOAT, (None, width)),)
        ),
        **{names.layer_name(number): layer for number in artifact.manifest.layers},
        names.HEAD: Contract(
            inputs=(
                Tensor(names.HIDDEN, FLOAT, hidden),
                Tensor(names.ROWS, INTEGER, (None,)),
            ),
            outputs=(Tensor(names.LOGITS, FLOAT, (None, config.decoder.vocab_size)),),
        ),
    }


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


def _layer_contract(target: TargetRecord, width: int) -> Contract:
    hidden = (None, None, width)
    cache = {
        name: (_CACHE_TYPES[one.dtype], (None, 1, None, one.width))
        for name, one in target.cache.tensors.items()
    }
    return Contract(
        inputs=(
            Tensor(names.HIDDEN, FLOAT, hidden),
            *(Tensor(name, *one) for name, one in cache.items()),
            Tensor(names.LENGTHS, INTEGER, (None,)),
        ),
        outputs=(
            Tensor(names.HIDDEN_OUT, FLOAT, hidden),
            *(Tensor(names.output_of(name), *one) for name, one in cache.items()),
        ),
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
