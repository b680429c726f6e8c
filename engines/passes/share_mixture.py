"""Shares of a normalised router for operators that weigh by a softmax: no sum, no division.

What the router divides by cancels: with p the sigmoid's scores at the chosen experts, their shares
are softmax(log p), and the mixture is multiplied by the router's factor, which is a constant.
The router adds 1e-20 to the sum of the scores, which is left out here. It tells only where all
chosen scores together are less than some 1e-13; where every one is zero, the router would weigh the
experts by nothing, and they are weighed alike here.

Shared experts can stand behind the routed ones, chosen by every token: their logit is a constant,
a number that the operator's type has, so that they are weighed alike for every token; against it
the shares are moved so that a routed expert weighs the factor times its share as much.
"""

from dataclasses import dataclass
from math import log

import numpy as np
import onnx_ir as ir

from export.graph.edits import given
from export.graph.widen import NARROW

from .graph_edits import cast, ints, number, producer_of, static_size
from .plain_router import Normalised, give_plain_scores
from .routed_experts import RoutedExperts
from .softmax_mixture import NEVER, TINY, WeighedBySum, Weighing, scaled_in_fp32


@dataclass(frozen=True, kw_only=True)
class WeighedByShare:
    """Scores that count by their share of the sum; satisfies `Weighing`."""

    hidden: ir.Value
    """What the experts read, (N, C)."""
    chosen: ir.Value
    """(N, K) int64."""
    scores: ir.Value
    """(N, K) fp32, not divided by their sum, none negative."""
    num_experts: int
    """Routed ones."""
    num_shared: int
    """Experts behind the routed ones that every token reads with weight one."""
    factor: float
    """What the routed experts weigh together; positive."""
    dtype: ir.DataType | None
    """In which the operator computes."""

    def logits(self, tape: ir.tape.Tape) -> ir.Value:
        """Scatter the logarithms into rows that all layers have alike.

        In 16 bits they are relative to an expert of the mean score, which leaves little to round.
        """
        logs = tape.op("Log", [tape.op("Max", [self.scores, number(tape, TINY)])])
        shares = tape.op("LogSoftmax", [logs], {"axis": -1})
        if self._shift:
            shares = tape.op("Add", [shares, number(tape, self._shift)])
        logits = tape.op("ScatterElements", [self._rows(tape), self.chosen, shares], {"axis": 1})
        return cast(tape, logits, given(self.dtype)) if self._is_narrow else logits

    def scaled(self, tape: ir.tape.Tape, mixed: ir.Value) -> ir.Value:
        """Multiply by what all experts weigh together."""
        total = number(tape, self.factor + self.num_shared)
        return scaled_in_fp32(tape, mixed, total, self.dtype)

    @property
    def _is_narrow(self) -> bool:
        return self.dtype in NARROW

    @property
    def _shared_logit(self) -> float:
        """Of an expert with weight one, if a routed one of the mean share has zero, or nearly."""
        mean = self.factor / static_size(self.chosen, 1)
        dtype = given(self.dtype) if self._is_narrow else ir.DataType.FLOAT
        return float(np.asarray(-log(mean)).astype(dtype.numpy()))

    @property
    def _shift(self) -> float:
        """Added to the logarithms of shares; without shared experts any number means the same."""
        if self.num_shared:
            return self._shared_logit + log(self.factor)
        return log(static_size(self.chosen, 1)) if self._is_narrow else 0.0

    def _rows(self, tape: ir.tape.Tape) -> ir.Value:
        """Give (N, E) of a token that chose nothing yet.

        Made by batch and new tokens where these can be seen, the sizes that all layers share: one
        node then serves a graph of several layers.
        """
        row = [NEVER] * self.num_experts + [self._shared_logit] * self.num_shared
        values = tape.op("Constant", [], {"value_floats": row})
        whole = _before_flattening(self.hidden)
        source, axes = (self.chosen, 1) if whole is None else (whole, 2)
        sizes = [
            tape.op("Shape", [source], {"start": axis, "end": axis + 1}) for axis in range(axes)
        ]
        shape = tape.op("Concat", [*sizes, ints(tape, len(row))], {"axis": 0})
        rows = tape.op("Expand", [values, shape])
        return rows if whole is None else tape.op("Reshape", [rows, ints(tape, -1, len(row))])


def _before_flattening(hidden: ir.Value) -> ir.Value | None:
    """Return (B, S, C), of which tokens (B * S, C) were made, if that is what happened."""
    node = producer_of(hidden, "Reshape")
    whole = None if node is None else given(node.inputs[0])
    if whole is None or whole.shape is None or hidden.shape is None:
        return None
    is_flattened = len(whole.shape) == 3 and len(hidden.shape) == 2
    same_width = whole.shape[-1] == hidden.shape[-1] and isinstance(hidden.shape[-1], int)
    return whole if is_flattened and same_width else None


def weighing_of(
    model: ir.Model,
    experts: RoutedExperts,
    router: Normalised | None,
    *,
    num_experts: int,
    num_shared: int = 0,
) -> Weighing:
    """Say what experts weigh; a router that normalises stops to do so.

    Args:
        model: of the experts.
        experts: that become one operator.
        router: of them, if it normalises and may be changed.
        num_experts: routed ones.
        num_shared: experts behind them; only beside a router that normalises.
    """
    chosen, scores, hidden = experts.chosen, experts.scores, experts.hidden
    if router is None:
        return WeighedBySum(
            chosen=chosen, scores=scores, num_experts=num_experts, dtype=hidden.dtype
        )
    give_plain_scores(model, router.node)
    return WeighedByShare(
        hidden=hidden,
        chosen=chosen,
        scores=scores,
        num_experts=num_experts,
        num_shared=num_shared,
        factor=router.factor,
        dtype=hidden.dtype,
    )
