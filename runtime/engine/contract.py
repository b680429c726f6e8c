"""What each graph of an ONNX Runtime target takes and gives, checked when it is loaded.

A graph that was exchanged for another one is refused here, and not in the middle of an answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import onnxruntime as ort

from .. import names
from ..artifact.folder import Artifact
from ..artifact.records import TargetRecord
from ..config import KimiVLConfig
from ..errors import ArtifactError, describe_problems

_FLOAT, _INTEGER = "tensor(float)", "tensor(int64)"
_CACHE_TYPES = {"float32": _FLOAT, "int8": "tensor(int8)"}
"""Types of cache tensors that this engine can hold, as ONNX Runtime calls them."""


class _Tensor(NamedTuple):
    name: str
    dtype: str
    sizes: tuple[int | None, ...]
    """Of the axes; None where it differs from call to call."""


class _Contract(NamedTuple):
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]


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
    problems: list[str] = []
    for name, contract in contracts.items():
        inputs, outputs = sessions[name].get_inputs(), sessions[name].get_outputs()
        problems += _differences(f"{name} takes", inputs, contract.inputs)
        given = outputs[: len(contract.outputs)]  # taps may follow
        problems += _differences(f"{name} gives", given, contract.outputs)
    rows = (config.decoder.vocab_size, config.decoder.width)
    if artifact.manifest.embedding.shape != rows:
        problems.append(f"embedding is {artifact.manifest.embedding.shape}, expected {rows}")
    if problems:
        raise ArtifactError(
            describe_problems(str(artifact.folder), sorted(problems))
            + "; these are not the graphs of this model, compile it again into another folder"
        )


def _contracts(
    artifact: Artifact, target: TargetRecord, config: KimiVLConfig
) -> dict[str, _Contract]:
    vision, width = config.vision, config.decoder.width
    hidden = (None, None, width)
    merged = _Tensor(names.MERGED, _FLOAT, (None, vision.merge**2, vision.width))
    layer = _layer_contract(target, width)
    return {
        names.VISION: _Contract(
            inputs=(
                _Tensor(names.PATCHES, _FLOAT, (None, None, vision.patch_values)),
                _Tensor(names.ROW_WEIGHTS, _FLOAT, (None, vision.table_height)),
                _Tensor(names.COLUMN_WEIGHTS, _FLOAT, (None, vision.table_width)),
            ),
            outputs=(merged,),
        ),
        names.PROJECTOR: _Contract(
            inputs=(merged,), outputs=(_Tensor(names.FEATURES, _FLOAT, (None, width)),)
        ),
        **{names.layer_name(number): layer for number in artifact.manifest.layers},
        names.HEAD: _Contract(
            inputs=(
                _Tensor(names.HIDDEN, _FLOAT, hidden),
                _Tensor(names.ROWS, _INTEGER, (None,)),
            ),
            outputs=(_Tensor(names.LOGITS, _FLOAT, (None, config.decoder.vocab_size)),),
        ),
    }


def _layer_contract(target: TargetRecord, width: int) -> _Contract:
    hidden = (None, None, width)
    cache = {
        name: (_CACHE_TYPES[one.dtype], (None, 1, None, one.width))
        for name, one in target.cache.tensors.items()
    }
    return _Contract(
        inputs=(
            _Tensor(names.HIDDEN, _FLOAT, hidden),
            *(_Tensor(name, *one) for name, one in cache.items()),
            _Tensor(names.LENGTHS, _INTEGER, (None,)),
        ),
        outputs=(
            _Tensor(names.HIDDEN_OUT, _FLOAT, hidden),
            *(_Tensor(names.output_of(name), *one) for name, one in cache.items()),
        ),
    )


def _differences(
    what: str,
    found: Sequence[Any],
    expected: Sequence[_Tensor],
) -> list[str]:
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
