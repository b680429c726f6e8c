"""The nodes that make up the experts of a layer: routed ones, and the shared MLP beside them."""

from dataclasses import dataclass

import onnx_ir as ir

from export.graph.edits import given

from .expert_codes import SwiGLU, common_block
from .graph_edits import producer_of
from .replaced_rounding import Look, as_it_is, before_rounding
from .routed_experts import RoutedExperts
from .stored_codes import StoredCodes


@dataclass(frozen=True, kw_only=True)
class Shared:
    """An MLP of stored codes whose result is added to that of the routed experts."""

    matrices: SwiGLU
    routed: ir.Value
    """What it is added to: the routed experts' result, by slot and token."""
    sum: ir.Value


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The experts of a layer that one operator can compute."""

    experts: RoutedExperts
    routed: SwiGLU
    """Their matrices."""
    shared: Shared | None

    @classmethod
    def of(cls, down_node: ir.Node, *, may_round: bool) -> "Mixture | None":
        """Look around an ExpertsDown.

        Args:
            down_node: the second half of the experts.
            may_round: whether the operator may round in its own way where the recipe rounds to
                int8; it cannot do it in the recipe's. Codes of 8 bits need it.

        Returns:
            None if these experts have to stay as they are.
        """
        look = before_rounding if may_round else as_it_is
        experts = RoutedExperts.of(down_node, look)
        if experts is None:
            return None
        routed = SwiGLU.of(experts.gate, experts.up, experts.down)
        if routed is None or common_block(routed.matrices) is None:
            return None
        if routed.gate.bits != 4 and not may_round:
            return None
        return cls(experts=experts, routed=routed, shared=_shared(experts, routed, look))

    @property
    def matrices(self) -> tuple[StoredCodes, ...]:
        """All that the operator reads."""
        shared = () if self.shared is None else self.shared.matrices.matrices
        return (*self.routed.matrices, *shared)


def _shared(experts: RoutedExperts, routed: SwiGLU, look: Look) -> Shared | None:
    """Find the shared MLP, if it can be cut into experts of the routed ones' form.

    One that the recipe rounds, and the operator may not, stays as it is.
    """
    whole = _only_user(experts.mixed, "Reshape")
    added = None if whole is None else _only_user(whole, "Add")
    if whole is None or added is None:
        return None
    other = next(value for value in given(added.producer()).inputs if value is not whole)
    found, rows = _swiglu(given(other), look), producer_of(experts.hidden, "Reshape")
    if found is None or rows is None or rows.inputs[0] is not found[0]:
        return None
    matrices = found[1]
    fits = common_block((*routed.matrices, *matrices.matrices)) == common_block(routed.matrices)
    if not fits or matrices.width % routed.width:
        return None
    return Shared(matrices=matrices, routed=whole, sum=added)


def _swiglu(value: ir.Value, look: Look) -> tuple[ir.Value, SwiGLU] | None:
    """Take apart down(silu(gate(x)) * up(x)): x, and the matrices."""
    down = producer_of(value, "MatMul")
    product = None if down is None else producer_of(look(given(down.inputs[0])), "Mul")
    swish = None if product is None else producer_of(product.inputs[0], "Mul")
    if down is None or product is None or swish is None:
        return None
    gate, up = producer_of(swish.inputs[0], "MatMul"), producer_of(product.inputs[1], "MatMul")
    half = producer_of(swish.inputs[1], "Sigmoid")
    if gate is None or up is None or half is None or half.inputs[0] is not swish.inputs[0]:
        return None
    matrices = SwiGLU.of(gate.inputs[1], up.inputs[1], down.inputs[1])
    x = look(given(gate.inputs[0]))
    if matrices is None or x is not look(given(up.inputs[0])):
        return None
    return x, matrices


def _only_user(value: ir.Value, op_type: str) -> ir.Value | None:
    """What the only reader of a value gives, if it is of some type."""
    users = [user for user, _ in value.uses()]
    return users[0].outputs[0] if len(users) == 1 and users[0].op_type == op_type else None
