"""What each form of the experts moves and computes: arithmetic on sizes, nothing measured.

A gathered matrix is written as plain numbers and read again by its product, which for codes is far
more than reading the codes; so all experts are soon the cheaper choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .options import ExpertsForm


@dataclass(frozen=True, kw_only=True)
class ExpertStack:
    """The routed experts of one layer."""

    num_experts: int
    num_chosen: int
    """K, of each token."""
    numbers: int
    """In the three matrices of one expert: 3 * C * I."""
    stored_bytes: int
    """Of those, codes and scales."""
    number_bytes: int
    """Of one number in the base type."""

    @property
    def most_gathered(self) -> int:
        """The most pairs of token and expert for which gathering moves fewer bytes than all do."""
        return (self.num_experts * self.stored_bytes - 1) // self._gathered_bytes

    @property
    def _gathered_bytes(self) -> int:
        return self.stored_bytes + 2 * self.numbers * self.number_bytes

    def moved_bytes(self, form: ExpertsForm, num_tokens: int) -> int:
        """Count bytes of weights that are read or written for N tokens.

        Kernels read an expert once however many tokens chose it; no two are assumed to choose the
        same, so that this is the most.
        """
        pairs = num_tokens * self.num_chosen
        match self._taken(form, pairs):
            case "plugin" | "layer":
                return min(pairs, self.num_experts) * self.stored_bytes
            case "gather":
                return pairs * self._gathered_bytes
            case _:
                return self.num_experts * self.stored_bytes

    def flops(self, form: ExpertsForm, num_tokens: int) -> int:
        """Count multiplications and additions of the products for N tokens."""
        pairs = num_tokens * self.num_chosen
        is_dense = self._taken(form, pairs) == "dense"
        return 2 * self.numbers * (num_tokens * self.num_experts if is_dense else pairs)

    def best_form(self, num_tokens: int, among: Sequence[ExpertsForm]) -> ExpertsForm:
        """Choose the form that moves the fewest bytes, of equal ones that which computes least."""
        return min(
            among,
            key=lambda form: (self.moved_bytes(form, num_tokens), self.flops(form, num_tokens)),
        )

    def _taken(self, form: ExpertsForm, pairs: int) -> ExpertsForm:
        """Say which form a call with this many pairs takes."""
        if form != "conditional":
            return form
        return "gather" if pairs <= self.most_gathered else "dense"
