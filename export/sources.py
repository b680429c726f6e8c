"""Where each parameter of a traced module comes from in the checkpoint, and its bytes.

A parameter is one tensor, or several stacked along its first axis (experts). Linear weights are
turned from (out, in) to (in, out) on the way; nothing is held but one block at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from runtime.errors import CheckpointError

from .checkpoint.reader import Checkpoint
from .modules.decoder import Experts, Gate, LatentUp
from .modules.linear import Linear

ONNX_TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}
_BLOCK_ELEMENTS = 1 << 24

Turn = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A parameter as a view of checkpoint tensors; satisfies `weights_file.Values`."""

    name: str
    """Name of the parameter in its module, hence of the initialiser."""
    shape: tuple[int, ...]
    torch_dtype: torch.dtype
    checkpoint: Checkpoint
    tensors: tuple[str, ...]
    """Checkpoint names; several are stacked along the first axis."""
    turn: Turn

    @property
    def dtype(self) -> ir.DataType:
        """ONNX element type."""
        return ONNX_TYPES[self.torch_dtype]

    def parts(self) -> Iterator[Tensor]:
        """Yield the tensors that make up the parameter, turned but not yet cast or copied."""
        for name in self.tensors:
            yield self.turn(self.checkpoint.tensor(name))

    def blocks(self) -> Iterable[memoryview]:
        """Yield the parameter's bytes in order.

        Raises:
            CheckpointError: a value is not finite, as stored or after the cast.
        """
        for name, part in zip(self.tensors, self.parts(), strict=True):
            rows = part.reshape(1) if part.dim() == 0 else part
            step = max(1, _BLOCK_ELEMENTS // max(1, rows[0].numel()))
            for start in range(0, rows.shape[0], step):
                stored = rows[start : start + step]
                block = stored.to(self.torch_dtype).contiguous()
                if not bool(torch.isfinite(block).all()):
                    raise CheckpointError(f"{name}: {self._why_not_finite(stored)}")
                yield block.view(torch.uint8).flatten().numpy().data

    def _why_not_finite(self, stored: Tensor) -> str:
        if not bool(torch.isfinite(stored.double()).all()):
            return "the checkpoint itself holds NaN or infinity; get the file again"
        return (
            f"values that are too large for {self.torch_dtype}; give a wider recipe "
            "(--recipe bf16 or fp32)"
        )

    def value(self) -> Tensor:
        """Return the whole parameter in memory."""
        value = torch.empty(self.shape, dtype=self.torch_dtype)
        fill_parts(value, self.parts())
        return value


def fill_parts(value: Tensor, parts: Iterable[Tensor]) -> None:
    """Copy tensors, one behind the other, over a contiguous tensor of as many numbers."""
    flat, end = value.view(-1), 0
    for part in parts:
        flat[end : end + part.numel()].view(part.shape).copy_(part)
        end += part.numel()


def parameter_sources(module: nn.Module, prefix: str, checkpoint: Checkpoint) -> list[Source]:
    """List the source of every parameter, in the order of the module.

    Args:
        module: one of `export.modules`, with memory reserved or on the meta device.
        prefix: of its tensors in the checkpoint, with the dot.
        checkpoint: an open checkpoint.
    """
    sources = []
    for path, owner in module.named_modules():
        for attribute, parameter in owner.named_parameters(recurse=False):
            name = f"{path}.{attribute}" if path else attribute
            tensors, turn = _origin(owner, path, attribute, name)
            sources.append(
                Source(
                    name=name,
                    shape=tuple(parameter.shape),
                    torch_dtype=parameter.dtype,
                    checkpoint=checkpoint,
                    tensors=tuple(prefix + tensor for tensor in tensors),
                    turn=turn,
                )
            )
    return sources


def load_parameters(module: nn.Module, sources: Iterable[Source]) -> None:
    """Fill a module's parameters from their sources."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for source in sources:
            fill_parts(parameters[source.name], source.parts())


def _origin(owner: nn.Module, path: str, attribute: str, name: str) -> tuple[list[str], Turn]:
    """Checkpoint names behind one parameter, and how each tensor is turned."""
    if isinstance(owner, Linear | Gate) and attribute == "weight":
        return [name], _transposed_matrix
    if isinstance(owner, Experts):
        count = getattr(owner, attribute).shape[0]
        return [f"{path}.{i}.{attribute}.weight" for i in range(count)], _transposed_matrix
    if isinstance(owner, LatentUp):
        heads, nope, rank = owner.key.shape
        rows = nope + owner.value.shape[2]
        if attribute == "key":
            return [f"{path}.weight"], lambda w: w.reshape(heads, rows, rank)[:, :nope]
        return [f"{path}.weight"], lambda w: w.reshape(heads, rows, rank)[:, nope:].mT
    return [name], lambda tensor: tensor


def _transposed_matrix(weight: Tensor) -> Tensor:
    """(out, in, ...) to (in, out); a convolution kernel is a matrix over its whole patch."""
    return weight.reshape(weight.shape[0], -1).T
