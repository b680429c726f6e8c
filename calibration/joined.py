"""The joined graph of a decoder against the layers and the head that it was made of.

It is cut where one layer ends and the next one begins, so that a layer is in memory and no more.
Operators that make a sum and its norm at once are measured alone and taken apart before.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from export.graph.edits import given
from runtime import names
from runtime.artifact.folder import Artifact
from runtime.artifact.records import TargetRecord
from runtime.config import KimiVLConfig

from .parity import open_wide, relative_error, wide_session
from .skip_norms import meaning, skip_norms, split

Arrays = dict[str, NDArray[Any]]
_SEED = 20261
_TOKENS, _CACHED = 3, 12
_LENGTHS = np.array([4, 1, 7], dtype=np.int64)
_ROWS = np.array([5, 0, 2, 8], dtype=np.int64)


def measure_joined(
    artifact: Artifact, record: TargetRecord, path: str, config: KimiVLConfig
) -> float:
    """Return the largest max|a - b| / max|b| over hidden states, caches and what the head gives.

    And over sums and norms in one operator, each on random rows beside float64.

    Args:
        artifact: opened, hence checked.
        record: of the target, whose graphs of layers and head are the truth.
        path: of the joined graph.
        config: sizes of the model.

    Returns:
        The figure; infinite if an output is not finite.

    Raises:
        ValueError: a layer reads something else than itself, or has no end.
    """
    joined, layers = _Joined(artifact, path), artifact.manifest.layers
    fed = _example_inputs(record, len(layers), config.decoder.width)
    begin, errors = names.HIDDEN, joined.split_norms(fed)
    for place, layer in enumerate(layers):
        own = {name: names.place_name(place, name) for name in record.cache.tensors}
        alone = {name: fed[called] for name, called in own.items()}
        truth = open_wide(artifact, record.graphs[names.layer_name(layer)])
        expected = _run(truth, {**fed, **alone, names.HIDDEN: fed[begin]})
        is_last = place == len(layers) - 1
        end = names.HIDDEN_OUT if is_last else names.place_name(place, names.HIDDEN_OUT)
        pairs = {end: names.HIDDEN_OUT}
        pairs |= {names.output_of(called): names.output_of(name) for name, called in own.items()}
        found = _run(joined.part([begin, *own.values()], list(pairs)), fed)
        errors += [relative_error(found[one], expected[other]) for one, other in pairs.items()]
        fed[end], begin = expected[names.HIDDEN_OUT], end
    truth = open_wide(artifact, record.graphs[names.HEAD])
    expected = _run(truth, {**fed, names.HIDDEN: fed[begin]})
    found = _run(joined.part([begin], list(expected)), fed)
    errors += [relative_error(found[name], values) for name, values in expected.items()]
    return max(errors)


def _example_inputs(record: TargetRecord, num_layers: int, width: int) -> Arrays:
    """Make other lengths in each slot and another cache in each layer."""
    random = np.random.default_rng(_SEED)
    slots = len(_LENGTHS)
    made: Arrays = {
        names.place_name(place, name): random.standard_normal(
            (slots, 1, _CACHED, one.width), dtype=np.float32
        )
        for place in range(num_layers)
        for name, one in record.cache.tensors.items()
    }
    made[names.HIDDEN] = random.standard_normal((slots, _TOKENS, width), dtype=np.float32)
    return {**made, names.LENGTHS: _LENGTHS, names.ROWS: _ROWS}


class _Joined:
    """A joined graph, of which parts are run."""

    def __init__(self, artifact: Artifact, path: str) -> None:
        model = ir.serde.deserialize_model(onnx.load_from_string(artifact.read_checked(path)))
        self._place = artifact.folder / path
        ir.external_data.set_base_dir(model.graph, self._place.parent)
        self._graph, self._ir_version = model.graph, model.ir_version
        self._hidden = next(one for one in model.graph.inputs if one.name == names.HIDDEN)

    def split_norms(self, fed: Arrays) -> list[float]:
        """Measure each sum and norm in one operator on random rows, then take it apart."""
        errors = []
        left = fed[names.HIDDEN]
        right = np.roll(left, 1, axis=-1)
        for node in skip_norms(self._graph):
            first, second = (str(given(value).name) for value in node.inputs[:2])
            expected = meaning(node, left, right)
            session = self.part([first, second], list(expected))
            found = _run(session, {**fed, first: left, second: right})
            errors += [relative_error(found[name], values) for name, values in expected.items()]
            split(self._graph, node)
        return errors

    def part(self, inputs: list[str], outputs: list[str]) -> ort.InferenceSession:
        """Load what lies between some values; the sizes of a step are those of the whole graph."""
        sizes = [names.HIDDEN, names.LENGTHS, names.ROWS, names.place_name(0, names.CACHE)]
        taken = list(dict.fromkeys([*inputs, *sizes]))
        graph = ir.convenience.extract(self._graph, taken, outputs)
        for value in graph.inputs:
            if value.type is None:  # of hidden states between layers
                value.type, value.shape = self._hidden.type, self._hidden.shape
        return wide_session(ir.Model(graph, ir_version=self._ir_version), self._place)


def _run(session: ort.InferenceSession, fed: Mapping[str, NDArray[Any]]) -> Arrays:
    wanted = [one.name for one in session.get_outputs()]
    taken = {one.name: fed[one.name] for one in session.get_inputs()}
    return dict(zip(wanted, session.run(wanted, taken), strict=True))
