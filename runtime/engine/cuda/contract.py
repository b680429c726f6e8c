"""What the graphs of target `cuda` take and give, checked when they are loaded."""

from collections.abc import Mapping

import onnxruntime as ort

from ... import names
from ...artifact.folder import Artifact
from ...artifact.records import TargetRecord
from ...config import KimiVLConfig
from ...errors import ArtifactError, describe_problems
from ..contract import FLOAT, INTEGER, Contract, Tensor, session_problems, vision_contract

_TYPES = {"float32": FLOAT, "float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}
"""Types of cache tensors, as ONNX Runtime calls them."""


def check_graphs(
    artifact: Artifact,
    target: TargetRecord,
    config: KimiVLConfig,
    sessions: Mapping[str, ort.InferenceSession],
) -> None:
    """Compare vision, projector, decoder and embedding with what the engine will make of them.

    Raises:
        ArtifactError: a graph takes or gives something else; all such graphs are listed.
    """
    kinds = {one.dtype for one in target.cache.tensors.values()}
    if set(target.cache.tensors) != {names.CACHE} or not kinds <= _TYPES.keys():
        raise ArtifactError(
            f"{artifact.folder}: a cache of {', '.join(target.cache.tensors)} in "
            f"{', '.join(sorted(kinds))}; the CUDA engine runs whole rows of {', '.join(_TYPES)}"
        )
    (base,) = (_TYPES[kind] for kind in kinds)
    vision = config.vision
    merged = Tensor(names.MERGED, base, (None, vision.merge**2, vision.width))
    features = Tensor(names.FEATURES, FLOAT, (None, config.decoder.width))
    contracts = {
        names.VISION: vision_contract(vision, merged),
        names.PROJECTOR: Contract(inputs=(merged,), outputs=(features,)),
        names.DECODER: _decoder_contract(artifact, target, config, base),
    }
    problems = session_problems(artifact, config, sessions, contracts, may_give_more=False)
    if problems:
        raise ArtifactError(
            describe_problems(str(artifact.folder), problems)
            + "; these are not the graphs of this model, build the target again"
        )


def _decoder_contract(
    artifact: Artifact, target: TargetRecord, config: KimiVLConfig, base: str
) -> Contract:
    decoder = config.decoder
    caches = [
        Tensor(names.place_name(place, name), base, (None, 1, None, one.width))
        for place in range(len(artifact.manifest.layers))
        for name, one in target.cache.tensors.items()
    ]
    return Contract(
        inputs=(
            Tensor(names.HIDDEN, base, (None, None, decoder.width)),
            Tensor(names.LENGTHS, INTEGER, (None,)),
            *caches,
            Tensor(names.ROWS, INTEGER, (None,)),
        ),
        outputs=(
            Tensor(names.LOGITS, FLOAT, (None, decoder.vocab_size)),
            Tensor(names.BEST, "tensor(int32)", (None,)),
            Tensor(names.ENERGY, FLOAT, (None,)),
            *(one._replace(name=names.output_of(one.name)) for one in caches),
        ),
    )
