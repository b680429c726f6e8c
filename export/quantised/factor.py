"""What balancing multiplies a parameter by, before anything else."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Factor:
    """Factors of a parameter's inputs and outputs; both broadcast over it."""

    inputs: Tensor | None = None
    """(..., K, 1)"""
    outputs: Tensor | None = None
    """(N,) or (..., 1, N); of a vector its own channels."""

    def applied(self, values: Tensor) -> Tensor:
        """Multiply a parameter."""
        for one in (self.inputs, self.outputs):
            values = values if one is None else values * one
        return values

    def of_matrix(self, index: int) -> "Factor":
        """Give the factors of one matrix of a stack."""
        inputs, outputs = (
            one[min(index, len(one) - 1)] if one is not None and one.dim() == 3 else one
            for one in (self.inputs, self.outputs)
        )
        return Factor(inputs=inputs, outputs=outputs)

    def with_inputs(self, factors: Tensor) -> "Factor":
        """Multiply the inputs by more."""
        both = factors if self.inputs is None else self.inputs * factors
        return Factor(inputs=both, outputs=self.outputs)

    def with_outputs(self, factors: Tensor) -> "Factor":
        """Multiply the outputs by more."""
        both = factors if self.outputs is None else self.outputs * factors
        return Factor(inputs=self.inputs, outputs=both)
