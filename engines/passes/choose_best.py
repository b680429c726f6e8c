"""The highest logit of each row chosen on the device, so that greedy decoding reads no logits.

A row of the released vocabulary is 655 kB, its best id 4 bytes. Of equal logits the lowest id wins,
as with numpy's argmax. Operators that give an index promise no order of ties; so targets give the
least id whose logit equals the maximum. The maximum may pass over a NaN; the sum of squares
does not, nor over an infinity, and it is finite for all logits below 1e16.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import BEST, ENERGY, LOGITS

from ..lowering import Lowered


class Choice(NamedTuple):
    """What is known of rows of logits."""

    best: ir.Value
    energy: ir.Value


class ChooseBest(ABC):
    """Give the head two more outputs beside `logits` (N, V): `best` (N,) int32, `energy` (N,) fp32.

    `best` is the id of the highest logit of a finite row, of equal ones the lowest. `energy` is the
    sum of the row's squares; not finite if one of its logits is not, and then `best` says nothing.
    """

    name: str

    @abstractmethod
    def choose(self, tape: ir.tape.Tape, logits: ir.Value) -> Choice:
        """Compute both in operators that the target has, in new nodes."""

    def requires(self, model: ir.Model) -> str | None:
        """Logits are fp32 of a known vocabulary, and the names of the outputs are free."""
        for logits in _logits_of(model):
            if logits.dtype != ir.DataType.FLOAT:
                return f"logits are {logits.dtype}, not fp32"
            if logits.shape is None or not isinstance(logits.shape[1], int):
                return "logits without a fixed vocabulary"
        taken = [value.name for value in model.graph.outputs if value.name in (BEST, ENERGY)]
        return f"there are outputs {taken} already" if taken else None

    def run(self, lowered: Lowered) -> Lowered:
        """Add the outputs; graphs without logits stay as they are."""
        graph = lowered.model.graph
        for logits in _logits_of(lowered.model):
            tape = ir.tape.Tape()
            best, energy = self.choose(tape, logits)
            best.name, best.type = BEST, ir.TensorType(ir.DataType.INT32)
            energy.name, energy.type = ENERGY, logits.type
            best.shape = energy.shape = ir.Shape(given(logits.shape)[:1])
            graph.extend(tape.nodes)
            graph.outputs.extend((best, energy))
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """Whatever gives logits gives their best as well."""
        outputs = {value.name for value in model.graph.outputs}
        lacking = sorted({BEST, ENERGY} - outputs) if LOGITS in outputs else []
        return f"logits without {lacking}" if lacking else None


def _logits_of(model: ir.Model) -> list[ir.Value]:
    """List the outputs that are logits: one of a head, none of other graphs."""
    return [value for value in model.graph.outputs if value.name == LOGITS]
