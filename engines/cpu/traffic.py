"""Bytes that target `cpu` has to read for a token, from the lowered graphs themselves.

A weight that is stored narrow and widened when a graph is loaded counts as wide as it is read then.
What a kernel keeps besides, such as sums of blocks, does not count: bytes are the least that a
token takes, and what follows from them is a limit.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from export.graph.edits import given
from runtime import names
from runtime.artifact.folder import CONFIG_FILE, Artifact
from runtime.config import KimiVLConfig

_CHOSEN = {names.BLOCK_EXPERTS: "num_computed", "QMoE": "k", "MoE": "k"}
"""Ops that read chosen experts only, and the attribute that counts those of a token."""
_SHARED = "num_shared"


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of one layer."""

    bytes: float
    """Of one."""
    count: int
    chosen: int
    """Of a token, by the router."""
    shared: int
    """Besides, read always."""

    def read_bytes(self, batch: int) -> float:
        """Add up those that some tokens read, if they choose evenly: each is read once."""
        missed = (1 - self.chosen / self.count) ** batch
        return self.bytes * (self.shared + self.count * (1 - missed))


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that decoding reads; the embedding's row is left out."""

    dense_bytes: float
    """Layers and head, without experts."""
    experts: tuple[Experts, ...]
    cache_token_bytes: int
    """For each token that is in the cache, all layers."""

    @classmethod
    def of(cls, artifact: Artifact, target: str = "cpu") -> "Traffic":
        """Read the graphs that run for each token."""
        record, layers = artifact.target(target), artifact.manifest.layers
        graphs = [*map(names.layer_name, layers), names.HEAD]
        config = KimiVLConfig.load(artifact.model_folder / CONFIG_FILE)
        num_experts = config.decoder.num_experts
        read = [_read_graph(artifact.folder / record.graphs[name], num_experts) for name in graphs]
        return cls(
            dense_bytes=sum(dense for dense, _ in read),
            experts=tuple(one for _, experts in read for one in experts),
            cache_token_bytes=record.cache.token_bytes * len(layers),
        )

    def at(self, depth: float, *, batch: int = 1) -> float:
        """Add up a step of one token in each of some slots, behind `depth` others."""
        experts = sum(one.read_bytes(batch) for one in self.experts)
        return self.dense_bytes + experts + batch * depth * self.cache_token_bytes


def _read_graph(path: Path, num_experts: int) -> tuple[float, list[Experts]]:
    """Return the bytes of what is not an expert, and the experts."""
    graph = ir.load(path).graph
    sizes = {id(value): _stored_bytes(value) for value in graph.initializers.values()}
    dense: dict[int, float] = {}
    experts = []
    for node in graph:
        present = [value for value in node.inputs if value is not None]
        constants = [value for value in present if id(value) in sizes]
        if len(constants) == len(present):  # computed once, when the graph is loaded
            total = sum(sizes[id(value)] for value in constants)
            sizes.update((id(value), _computed_bytes(value, total)) for value in node.outputs)
        elif node.op_type in _CHOSEN:
            experts.append(
                _experts(
                    node,
                    sum(sizes[id(value)] for value in constants),
                    _stacked(constants, num_experts),
                )
            )
        else:
            dense.update((id(value), sizes[id(value)]) for value in constants)
    return sum(dense.values()), experts


def _stacked(constants: list[ir.Value], num_experts: int) -> int:
    """Count the experts in stacks; shared ones may stand among those of the router."""
    shapes = [value.shape for value in constants if value.shape is not None]
    (count,) = {shape.numpy()[0] for shape in shapes if shape.is_static()} or {num_experts}
    return count


def _experts(node: ir.Node, stacks_bytes: float, stacked: int) -> Experts:
    computed = node.attributes[_CHOSEN[node.op_type]].as_int()
    shared = node.attributes[_SHARED].as_int() if _SHARED in node.attributes else 0
    return Experts(
        bytes=stacks_bytes / stacked,
        count=stacked - shared,
        chosen=computed - shared,
        shared=shared,
    )


def _stored_bytes(value: ir.Value) -> float:
    return given(value.const_value).nbytes


def _computed_bytes(value: ir.Value, source_bytes: float) -> float:
    """Give the size of what is computed from constants of so many bytes.

    Where the graph does not tell its shape, it is taken to have as many numbers as they.
    """
    node = given(value.producer())
    if value.shape is not None and value.dtype is not None and value.shape.is_static():
        return math.prod(value.shape.numpy()) * value.dtype.itemsize
    if node.op_type == "Cast":
        source = given(given(node.inputs[0]).dtype)
        target = ir.DataType(node.attributes["to"].as_int())
        return source_bytes * target.itemsize / source.itemsize
    return source_bytes
