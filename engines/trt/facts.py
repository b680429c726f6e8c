"""What TensorRT made of a graph: layers, tensors and types, as plain values.

Does not know: ONNX, how a network is parsed or built.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

TYPE_BITS = {
    "fp32": 32,
    "fp16": 16,
    "bf16": 16,
    "fp8": 8,
    "fp4": 4,
    "int64": 64,
    "int32": 32,
    "int8": 8,
    "int4": 4,
    "uint8": 8,
    "e8m0": 8,
    "bool": 8,
}
"""Size of one number in memory."""

_TYPE_NAMES = {"FLOAT": "fp32", "HALF": "fp16"}
"""TensorRT's names that are not ours in capitals."""

NODE_PATH = re.compile(r"\[ONNX Layer: (.*?)\]")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a network."""

    name: str
    dtype: str
    """A key of `TYPE_BITS`."""
    shape: tuple[int, ...]
    """-1 where the size is free."""

    @property
    def count(self) -> int:
        """Numbers in it; a free size counts as one."""
        return prod(max(1, size) for size in self.shape)

    @property
    def size_bytes(self) -> int:
        """Memory of its numbers, packed."""
        return -(-self.count * TYPE_BITS[self.dtype] // 8)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a network."""

    name: str
    node: str
    """Path of the ONNX node it was made for, outermost first; the layer's own name if for none."""
    kind: str
    """TensorRT's `LayerType`, such as `MATRIX_MULTIPLY`."""
    inputs: tuple[Tensor | None, ...]
    """None where an optional input is left out."""
    outputs: tuple[Tensor, ...]
    kernel: Tensor | None = None
    """Weights that a convolution keeps itself."""
    equation: str = ""
    """Of an `EINSUM`."""

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The inputs that are there."""
        return tuple(tensor for tensor in self.inputs if tensor is not None)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A whole network."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...]

    @cached_property
    def producers(self) -> Mapping[str, Layer]:
        """The layer that makes each tensor, by the tensor's name."""
        return {tensor.name: layer for layer in self.layers for tensor in layer.outputs}

    @cached_property
    def unread_inputs(self) -> tuple[str, ...]:
        """Network inputs that no output depends on."""
        ends = (layer for layer in self.layers if not layer.outputs)  # conditions, trip limits
        waiting = [tensor.name for tensor in self.outputs]
        waiting += [tensor.name for layer in ends for tensor in layer.given]
        needed: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in needed:
                needed.add(name)
                layer = self.producers.get(name)
                waiting += [tensor.name for tensor in layer.given] if layer else []
        return tuple(tensor.name for tensor in self.inputs if tensor.name not in needed)

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """Weights that a plan will hold: what constants give, and kernels."""
        made = [layer.outputs[0] for layer in self.layers if layer.kind == "CONSTANT"]
        return (*made, *(layer.kernel for layer in self.layers if layer.kernel is not None))


def read_facts(trt: ModuleType, network: "rtx.INetworkDefinition") -> Facts:
    """Copy a network's facts; nothing in them refers to TensorRT's objects.

    Args:
        trt: the module of the home that made the network.
        network: an `INetworkDefinition`.
    """
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    outputs = (network.get_output(index) for index in range(network.num_outputs))
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return Facts(
        inputs=tuple(_tensor(one) for one in inputs),
        outputs=tuple(_tensor(one) for one in outputs),
        layers=tuple(_layer(trt, one) for one in layers),
    )


def type_name(dtype: "rtx.DataType") -> str:
    """Translate a TensorRT `DataType` to the words of recipes."""
    name: str = dtype.name
    return _TYPE_NAMES.get(name, name.lower())


def _layer(trt: ModuleType, layer: "rtx.ILayer") -> Layer:
    inputs = (layer.get_input(index) for index in range(layer.num_inputs))
    outputs = (layer.get_output(index) for index in range(layer.num_outputs))
    kind: str = layer.type.name
    path = node_path(layer.metadata)
    if kind == "ATTENTION_INPUT":  # the first of a pair of layers; the pair knows the node
        path = node_path(_as(trt.IAttentionInputLayer, layer).attention.metadata)
    return Layer(
        name=layer.name,
        node=path or layer.name,
        kind=kind,
        inputs=tuple(None if one is None else _tensor(one) for one in inputs),
        outputs=tuple(_tensor(one) for one in outputs if one is not None),
        kernel=_kernel(trt, layer) if kind == "CONVOLUTION" and layer.num_inputs == 1 else None,
        equation=_as(trt.IEinsumLayer, layer).equation if kind == "EINSUM" else "",
    )


def _kernel(trt: ModuleType, layer: "rtx.ILayer") -> Tensor:
    """Describe the weights of a convolution that are no tensor of the network."""
    channels = layer.get_input(0).shape[1]
    convolution = _as(trt.IConvolutionLayer, layer)
    kernel = convolution.kernel  # an array, or trt.Weights where numpy has no such type
    dtype = kernel.dtype.name
    known = {"float32": "fp32", "float16": "fp16"}
    sizes = tuple(convolution.kernel_size_nd)
    return Tensor(
        name=f"{layer.name}.kernel",
        dtype=known.get(dtype) or type_name(kernel.dtype),
        shape=(convolution.num_output_maps, channels // convolution.num_groups, *sizes),
    )


def _as(kind: type["rtx.ILayer"], layer: "rtx.ILayer") -> "rtx.ILayer":
    """Give a layer from `get_layer` the methods of its kind, as TensorRT's samples do it."""
    layer.__class__ = kind
    return layer


def _tensor(tensor: "rtx.ITensor") -> Tensor:
    return Tensor(name=tensor.name, dtype=type_name(tensor.dtype), shape=tuple(tensor.shape))


def node_path(metadata: str) -> str:
    """Turn a layer's metadata, `[ONNX Layer: inner | outer (F)]`, into `outer (F) / inner`."""
    found: Iterator[re.Match[str]] = NODE_PATH.finditer(metadata)
    return ", ".join(" / ".join(reversed(match[1].split(" | "))) for match in found)
