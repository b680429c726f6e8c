"""An ONNX file becomes a TensorRT network, or one error that names every node that is in the way.

TensorRT leaves out what it has no place for and says so in a warning. A plan that computes
something else is worse than none, so such warnings are errors here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import onnx

from runtime.errors import ArtifactError, UnsupportedError, describe_problems
from runtime.plugins.classes import register_plugins

from .facts import Facts, Tensor, read_facts
from .home import Home, Message

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

MEANING_CHANGES = ("was clamped", "currently ignores", "converted them to")
"""Pieces of the parser's warnings after which a graph computes something else."""

FUSED_TYPES = ("fp16", "bf16")
FUSED_HEAD_SIZES = range(16, 257, 8)
"""What attention has kernels for; the rest is decomposed into products and a softmax.

Source: built with TensorRT-RTX 1.7 for SM75 to SM120.
"""

_NOISE = re.compile(
    r"Invalid Node - \S+"
    r"|\w+::\w+: Error Code \d+: "
    r"|In \w+ at /\S+:\d+"
    r"|\[[\w.]+::\w+::\d+\] Error Code \d+: Cuda Runtime .*"  # follows all where there is no GPU
)


@dataclass(frozen=True, kw_only=True)
class ParsedNetwork:
    """A network, with the objects that own its memory and what is known about it."""

    path: Path
    home: Home
    builder: "rtx.Builder"
    network: "rtx.INetworkDefinition"
    parser: "rtx.OnnxParser"
    """Holds the weights that the network points to."""
    facts: Facts
    decomposed: tuple[str, ...]
    """Nodes whose attention has no fused kernel."""
    messages: tuple[Message, ...]
    """What the parser said."""

    def facts_at(self, shapes: Mapping[str, tuple[int, ...]]) -> Facts:
        """Give the facts with inputs at fixed shapes, by TensorRT's own shape inference.

        Parses again: a network whose inputs get other shapes afterwards loses its FP4 layers.

        Args:
            shapes: of inputs that have free sizes; the others may be left out.

        Raises:
            UnsupportedError: the graph does not take these shapes.
        """
        model = _load(self.path)
        for one in model.graph.input:
            dims = one.type.tensor_type.shape.dim
            for dim, size in zip(dims, shapes.get(one.name, ()), strict=False):
                dim.dim_value = size
        with self.home.collecting():
            parser = _DirectParser(self.home)
            if not parser.parser.parse(model.SerializeToString(), str(self.path)):
                _raise_if_any(self.path, self.home, parser.problems(model))
            return read_facts(self.home.trt, parser.network)


def parse_network(home: Home, path: Path) -> ParsedNetwork:
    """Parse a graph as a strongly typed network; external data lies beside it.

    Raises:
        ArtifactError: the file is missing or not an ONNX graph.
        UnsupportedError: TensorRT does not take the graph, or would change its meaning; every
            reason is listed with its node. Or TensorRT or its plugins do not start here.
    """
    model = _load(path)
    _raise_if_any(path, home, list(_unsafe_blocks(model)))
    if _has_plugins(model):
        register_plugins(home.trt)
    from polygraphy.backend.trt import NetworkFromOnnxPath
    from polygraphy.exception import PolygraphyException

    with home.collecting() as messages:
        try:
            made = NetworkFromOnnxPath(str(path), strongly_typed=True)()
        except PolygraphyException as error:
            problems = _parser_problems(home, path, model)
            raise UnsupportedError(_description(path, home, problems)) from error
        except TypeError as error:  # what the bindings raise where the library gives no object
            said = "; ".join(shorten(one.text) for one in messages if one.severity != "INFO")
            raise UnsupportedError(
                f"{home.title} does not start here{f': {said}' if said else ''}; "
                "without a GPU and its driver only targets like rtx:sm89 can be built"
            ) from error
    builder, network, parser = made
    facts = read_facts(home.trt, network)
    problems = [*unread_problems(model, facts.unread_inputs), *_changed_meanings(messages)]
    problems += _unbuildable_attentions(facts)
    _raise_if_any(path, home, problems)
    return ParsedNetwork(
        path=path,
        home=home,
        builder=builder,
        network=network,
        parser=parser,
        facts=facts,
        decomposed=_decompose(home.trt, network, facts),
        messages=tuple(messages),
    )


def unread_problems(model: onnx.ModelProto, names: tuple[str, ...]) -> Iterator[str]:
    """Say of inputs that TensorRT does not read which nodes were given them."""
    for name in names:
        readers = [
            f"{_label(node, index)} ({node.op_type})"
            for index, node in enumerate(model.graph.node)
            if name in node.input
        ]
        if readers:
            yield f"input {name} of node {', '.join(readers)} is left out; use another form"
        else:
            yield f"input {name} is read by no node"


def shorten(text: str) -> str:
    """Leave out of a complaint where in TensorRT's own code it was made."""
    return " ".join(_NOISE.sub("", text).split())


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the parser raises many types without a common base
        raise ArtifactError(f"{path}: not an ONNX graph; build the target again") from error


def _has_plugins(model: onnx.ModelProto) -> bool:
    """Tell whether the parser will look for a plugin, which ends the process if unprepared."""
    nodes = [*model.graph.node, *(node for one in model.functions for node in one.node)]
    return any(one.name == "plugin_namespace" for node in nodes for one in node.attribute)


def _unsafe_blocks(model: onnx.ModelProto) -> Iterator[str]:
    """Find blocked scales that do not divide an axis.

    ONNX lets the last block be shorter. TensorRT ignores `block_size` and computes it from the
    shapes, so that all blocks would move.
    """
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    for index, node in enumerate(model.graph.node):
        attributes = {one.name: one.i for one in node.attribute}
        block = attributes.get("block_size", 0)
        if node.op_type not in ("DequantizeLinear", "QuantizeLinear") or not block:
            continue
        codes, scales = (shapes.get(name) for name in node.input[:2])
        axis = attributes.get("axis", 1)
        if codes and scales and codes[axis] != block * scales[axis]:
            yield (
                f"node {_label(node, index)} ({node.op_type}): blocks of {block} do not divide "
                f"axis {axis} of {codes[axis]}; pad it, or use a group that divides it"
            )


class _DirectParser:
    """TensorRT's parser without Polygraphy, which hands out no errors."""

    def __init__(self, home: Home) -> None:
        trt = home.trt
        self._builder = trt.Builder(home.logger)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self._builder.create_network(flags)
        self.parser = trt.OnnxParser(self.network, home.logger)

    def problems(self, model: onnx.ModelProto) -> list[str]:
        """Describe the errors of the last call."""
        errors = [self.parser.get_error(index) for index in range(self.parser.num_errors)]
        return [_parser_problem(error, model) for error in errors] or ["the parser gave no reason"]


def _parser_problems(home: Home, path: Path, model: onnx.ModelProto) -> list[str]:
    """Ask the parser for all that it does not take, not for the first alone."""
    parser = _DirectParser(home)
    parser.parser.supports_model_v2(path.read_bytes(), str(path))
    return parser.problems(model)


def _parser_problem(error: "rtx.ParserError", model: onnx.ModelProto) -> str:
    inside = error.local_function_stack() if error.local_function_stack_size() else []
    index, nodes = error.node(), model.graph.node
    label = error.node_name()
    if not label and not inside and 0 <= index < len(nodes):
        label = _label(nodes[index], index)
    where = " / ".join([*reversed(inside), label])
    return f"node {where} ({error.node_operator()}): {shorten(str(error.desc()))}"


def _changed_meanings(messages: list[Message]) -> Iterator[str]:
    yield from dict.fromkeys(
        message.text
        for message in messages
        if message.severity == "WARNING" and any(one in message.text for one in MEANING_CHANGES)
    )


def _unbuildable_attentions(facts: Facts) -> Iterator[str]:
    """Find head sizes that neither a kernel nor a decomposition builds for."""
    for node, query in _queries(facts):
        if query.dtype in FUSED_TYPES and query.shape[-1] % 8:
            yield (
                f"node {node} (Attention): a head size of {query.shape[-1]} in {query.dtype}; "
                "pad it to a multiple of 8, or write it as products and a softmax"
            )


def _decompose(trt: ModuleType, network: "rtx.INetworkDefinition", facts: Facts) -> tuple[str, ...]:
    """Allow products and a softmax where there is no fused kernel, and only there.

    Where there should be one, a build that does not find it is to fail.
    """
    unfused = {node for node, query in _queries(facts) if not _is_fused(query)}
    for index, layer in enumerate(facts.layers):
        if layer.kind == "ATTENTION_INPUT" and layer.node in unfused:
            found = network.get_layer(index)
            found.__class__ = trt.IAttentionInputLayer
            found.attention.decomposable = True
    return tuple(sorted(unfused))


def _queries(facts: Facts) -> Iterator[tuple[str, Tensor]]:
    """Give node and query (B, H, S, D) of each attention."""
    for layer in facts.layers:
        if layer.kind == "ATTENTION_INPUT" and layer.inputs[0] is not None:
            yield layer.node, layer.inputs[0]


def _is_fused(query: Tensor) -> bool:
    return query.dtype in FUSED_TYPES and query.shape[-1] in FUSED_HEAD_SIZES


def _label(node: onnx.NodeProto, index: int) -> str:
    return node.name or f"number {index}"


def _raise_if_any(path: Path, home: Home, problems: list[str]) -> None:
    if problems:
        raise UnsupportedError(_description(path, home, problems))


def _description(path: Path, home: Home, problems: list[str]) -> str:
    return describe_problems(f"{path}: {home.title} cannot take this graph", problems)
