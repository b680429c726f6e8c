"""What the graphs of target `cpu` take and give, checked when they are loaded."""

from collections.abc import Mapping

import onnxruntime as ort

from ... import names
from ...artifact.folder import Artifact
from ...artifact.records import TargetRecord
from ...config import KimiVLConfig
from ...errors import ArtifactError, describe_problems
from ..contract import FLOAT, INTEGER, Contract, Tensor, session_problems, vision_contract

_CACHE_TYPES = {"float32": FLOAT, "int8": "tensor(int8)"}
"""Types of cache tensors that this engine can hold, as ONNX Runtime calls them."""


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
