"""Every layer that multiplies: what its operands are stored in, and how much work it is.

The types of a strongly typed network bind TensorRT; what is read here from the parsed network is
what a plan computes with, whatever a recipe says.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod

from .facts import Facts, Layer, Tensor

PRODUCT_KINDS = (
    "MATRIX_MULTIPLY",
    "EINSUM",
    "CONVOLUTION",
    "ATTENTION_INPUT",
    "MOE",
    "PLUGIN_V3",
)
"""TensorRT's layers with multiply-adds."""

_SAME_NUMBERS = frozenset(
    (
        "CAST",
        "CONDITIONAL_INPUT",
        "DEQUANTIZE",
        "DYNAMIC_QUANTIZE",
        "GATHER",
        "IDENTITY",
        "ITERATOR",
        "QUANTIZE",
        "SHUFFLE",
        "SLICE",
        "SQUEEZE",
        "UNSQUEEZE",
    )
)
"""Layers whose first input holds the numbers of their output, in another form."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Types of the two operands of a product."""

    weights: str
    """Of what is multiplied with: codes of weights, or the second of two activations."""
    activations: str
    """What the other operand is rounded to; the layer's own type if it is not rounded."""

    def __str__(self) -> str:
        """Name for tables and errors: `int8 x fp16`."""
        return f"{self.weights} x {self.activations}"


@dataclass(frozen=True, kw_only=True)
class Product:
    """One layer, or one of the weights of a layer with several."""

    node: str
    kind: str
    weight: str
    """The constant, or the network input, that holds the weights; empty if there are none."""
    weight_bytes: int
    precision: Precision
    multiply_adds: int


@dataclass(frozen=True, kw_only=True)
class _Operand:
    """Where an operand comes from."""

    dtype: str
    """Of its codes, or its own if it has none."""
    weight: str = ""
    size_bytes: int = 0
    count: int = 0


def find_products(facts: Facts, weight_inputs: Collection[str] = ()) -> list[Product]:
    """List the products of a network with their precision and work.

    Args:
        facts: at fixed shapes; a size that is still free counts as one. Both branches of a
            condition are counted.
        weight_inputs: network inputs that hold weights.
    """
    finder = _Finder(facts, frozenset(weight_inputs))
    found = [layer for layer in facts.layers if layer.kind in PRODUCT_KINDS]
    return [product for layer in found for product in finder.products(layer)]


class _Finder:
    """Walks from a layer's inputs back to what they are made of."""

    def __init__(self, facts: Facts, weight_inputs: frozenset[str]) -> None:
        self._facts = facts
        self._weight_inputs = weight_inputs

    def products(self, layer: Layer) -> Iterator[Product]:
        operands = [self.trace(tensor) for tensor in layer.given]
        if layer.kernel is not None:
            operands.append(_weight(layer.kernel.dtype, layer.kernel))
        weights = [
            (index, one)
            for index, one in enumerate(operands)
            if one.weight and _is_matrix(layer, index)
        ]
        if not weights:
            yield from self._activations_only(layer, operands)
        for index, one in weights:
            yield Product(
                node=layer.node,
                kind=layer.kind,
                weight=one.weight,
                weight_bytes=one.size_bytes,
                precision=Precision(
                    weights=_unpacked(layer, index, one),
                    activations=_activations(layer, operands),
                ),
                multiply_adds=_multiply_adds(layer, index),
            )

    def trace(self, tensor: Tensor) -> _Operand:
        """Follow a tensor to the weights it holds, or to where it stops being the same numbers."""
        codes = ""
        start = tensor
        while tensor.name not in self._weight_inputs:
            layer = self._facts.producers.get(tensor.name)
            if layer is not None and layer.kind == "CONSTANT":
                return _weight(codes or tensor.dtype, tensor, layer.name)
            if layer is not None and layer.kind in ("CONCATENATION", "ELEMENTWISE"):
                return self._join(layer, codes or start.dtype)
            source = layer.inputs[0] if layer is not None and layer.inputs else None
            if layer is None or source is None or layer.kind not in _SAME_NUMBERS:
                return _Operand(dtype=codes or start.dtype)
            if layer.kind == "DEQUANTIZE":
                codes = codes or source.dtype
            tensor = source
        return _weight(codes or tensor.dtype, tensor, tensor.name)

    def _join(self, layer: Layer, dtype: str) -> _Operand:
        """Weights made of weights: matrices side by side, or codes times their scales."""
        parts = [self.trace(tensor) for tensor in layer.given]
        if not all(part.weight for part in parts):
            return _Operand(dtype=dtype)
        largest = max(parts, key=lambda part: part.count)
        kinds = {part.dtype for part in parts if layer.kind == "CONCATENATION"} or {largest.dtype}
        return _Operand(
            dtype="+".join(sorted(kinds)),
            weight=largest.weight,
            size_bytes=sum(part.size_bytes for part in parts),
            count=sum(part.count for part in parts),
        )

    def _activations_only(self, layer: Layer, operands: list[_Operand]) -> Iterator[Product]:
        """A product of activations, as in attention."""
        first, second = operands[0], operands[min(1, len(operands) - 1)]
        yield Product(
            node=layer.node,
            kind=layer.kind,
            weight="",
            weight_bytes=0,
            precision=Precision(weights=second.dtype, activations=first.dtype),
            multiply_adds=0 if layer.kind == "PLUGIN_V3" else _multiply_adds(layer, 1),
        )


def _weight(dtype: str, tensor: Tensor, name: str = "") -> _Operand:
    return _Operand(
        dtype=dtype,
        weight=name or tensor.name,
        size_bytes=tensor.size_bytes,
        count=tensor.count,
    )


def _activations(layer: Layer, operands: list[_Operand]) -> str:
    """Give the type of what meets the weights.

    TensorRT multiplies codes with codes where both operands were rounded; a plugin gets what the
    codes mean.
    """
    for tensor, operand in zip(layer.given, operands, strict=False):
        if not operand.weight:
            return tensor.dtype if layer.kind == "PLUGIN_V3" else operand.dtype
    return layer.given[0].dtype


def _is_matrix(layer: Layer, index: int) -> bool:
    """Tell matrices from the scales, biases and tables that some layers take besides."""
    if layer.kind == "MOE":
        return len(layer.given[index].shape) == 3
    if layer.kind == "PLUGIN_V3":
        return len(layer.given[index].shape) >= 2 and not _is_scale(layer, index)
    return True


def _is_scale(layer: Layer, index: int) -> bool:
    """Scales follow their codes and have fewer rows: (E, in / group, out)."""
    if index == 0:
        return False
    before, here = layer.given[index - 1].shape, layer.given[index].shape
    return len(before) == len(here) and before[:-2] == here[:-2] and here[-2] < before[-2]


def _unpacked(layer: Layer, index: int, operand: _Operand) -> str:
    """Recognise INT4 that a plugin takes as bytes: its scales have twice as many columns."""
    if layer.kind == "PLUGIN_V3" and index + 1 < len(layer.given) and _is_scale(layer, index + 1):
        codes, scales = layer.given[index].shape, layer.given[index + 1].shape
        if operand.dtype in ("int8", "uint8") and scales[-1] == 2 * codes[-1]:
            return "int4"
    return operand.dtype


def _multiply_adds(layer: Layer, index: int) -> int:
    """Count the multiply-adds of a layer with one of its weights."""
    out = layer.outputs[0]
    if layer.kind == "MATRIX_MULTIPLY":
        return _matrix_multiply(layer, out)
    if layer.kind == "EINSUM":
        return _einsum(layer)
    if layer.kind == "CONVOLUTION":
        kernel = layer.kernel or layer.given[1]
        return out.count * prod(kernel.shape[1:])
    if layer.kind == "ATTENTION_INPUT":
        query, key = layer.given[0], layer.given[1]
        return 2 * query.count * max(1, key.shape[-2])  # scores, then values
    if layer.kind == "MOE":
        token_choices = layer.given[1].count  # (b, s, k)
        return token_choices * prod(layer.given[index].shape[-2:])
    return _plugin(layer, index, out)


def _matrix_multiply(layer: Layer, out: Tensor) -> int:
    first = layer.given[0].shape
    if len(first) == 1:
        return out.count * max(1, first[0])
    rows = max(1, out.shape[-2]) if len(out.shape) > 1 else 1
    inner = prod(max(1, size) for size in first[-2:]) // rows  # either way the operand is turned
    return out.count * max(1, inner)


def _einsum(layer: Layer) -> int:
    """Multiply the sizes of all letters; `ab,bc->ac` is a * b * c."""
    terms = layer.equation.replace(" ", "").partition("->")[0].split(",")
    sizes = {
        letter: max(1, size)
        for term, tensor in zip(terms, layer.given, strict=True)
        for letter, size in zip(term, tensor.shape, strict=True)
    }
    return prod(sizes.values())


def _plugin(layer: Layer, index: int, out: Tensor) -> int:
    """Each row of the output meets one matrix (..., in, out) of the weights."""
    rows = out.count // max(1, out.shape[-1])
    return rows * layer.given[index].shape[-2] * max(1, out.shape[-1])
