"""The embedding table in int8: one scale for each token's row, made some rows at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from runtime import names
from runtime.errors import CheckpointError

from ..graph.weights_file import Values
from ..sources import Source
from .codes import LARGEST

SCALES = f"{names.EMBEDDING}_scales"
"""Name of the file with the scales, fp32 (V,)."""
_TINY = 2.0**-24
_BLOCK_ELEMENTS = 1 << 24


def row_scales(rows: Tensor) -> Tensor:
    """Scales (N, 1) fp32 that just hold the largest number of each row of (N, C)."""
    return (rows.float().abs().amax(dim=1, keepdim=True) / LARGEST["int8"]).clamp_min(_TINY)


def rounded_rows(rows: Tensor) -> Tensor:
    """Rows (N, C) as the codes mean them, fp32."""
    scales = row_scales(rows)
    return (rows.float() / scales).round() * scales


def stored_table(source: Source) -> dict[str, Values]:
    """Give codes and scales of a table, by the name of their file."""
    return {names.EMBEDDING: TableCodes(source=source), SCALES: TableScales(source=source)}


@dataclass(frozen=True, kw_only=True)
class TableCodes:
    """Codes (V, C); satisfies `weights_file.Values`."""

    source: Source
    name: str = names.EMBEDDING
    dtype: ir.DataType = ir.DataType.INT8

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the table."""
        return self.source.shape

    def blocks(self) -> Iterator[memoryview]:
        """Yield the codes of some rows after the others."""
        for rows in _blocks(self.source):
            codes = (rows / row_scales(rows)).round().to(torch.int8)
            yield codes.flatten().numpy().data


@dataclass(frozen=True, kw_only=True)
class TableScales:
    """Scales (V,) fp32; satisfies `weights_file.Values`."""

    source: Source
    name: str = SCALES
    dtype: ir.DataType = ir.DataType.FLOAT

    @property
    def shape(self) -> tuple[int, ...]:
        """One for each row of the table."""
        return self.source.shape[:1]

    def blocks(self) -> Iterator[memoryview]:
        """Yield the scales of some rows after the others."""
        for rows in _blocks(self.source):
            yield row_scales(rows).flatten().view(torch.uint8).numpy().data


def _blocks(source: Source) -> Iterator[Tensor]:
    """Yield the table in fp32, a bounded number of rows at a time."""
    step = max(1, _BLOCK_ELEMENTS // source.shape[1])
    for name, table in zip(source.tensors, source.parts(), strict=True):
        for start in range(0, len(table), step):
            rows = table[start : start + step].float()
            if not bool(torch.isfinite(rows).all()):
                raise CheckpointError(
                    f"{name}: values that are not finite; the checkpoint is damaged"
                )
            yield rows
