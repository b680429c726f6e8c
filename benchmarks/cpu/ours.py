"""Our side of the CPU benchmark: an open engine that decodes and prefills at any depth.

The cache is filled by prefilling random tokens once; a depth then is only where the next token
goes, as with llama.cpp, whose cache is cut.
"""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from runtime.artifact.folder import Artifact
from runtime.engine.onnx_engine import OnnxEngine
from runtime.engine.weights_place import WeightsPlace

SLOT = 0


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one decoded token reads."""

    weights: float
    cache: float
    """For each token that is in the cache."""

    def at(self, depth: int) -> float:
        """All bytes behind `depth` tokens."""
        return self.weights + self.cache * depth


class Ours:
    """An artifact of the released sizes on target `cpu`."""

    def __init__(self, folder: Path, *, threads: int = 2, weights: WeightsPlace = "packed") -> None:
        """Open it."""
        self._artifact = Artifact.open(folder)
        self._engine = OnnxEngine(self._artifact, num_threads=threads, weights=weights)
        self._random = np.random.default_rng(1)
        self._filled = 0

    def decode(self, depth: int, tokens: int) -> list[float]:
        """Decode random tokens behind `depth` others: seconds for each."""
        self._fill(depth + tokens)
        seconds = []
        for place in range(depth, depth + tokens):
            start = perf_counter()
            self._step(place, 1)
            seconds.append(perf_counter() - start)
        return seconds

    def prefill(self, tokens: int, depth: int = 0) -> float:
        """Run random tokens as one step behind `depth` others: seconds."""
        self._fill(depth)
        start = perf_counter()
        self._step(depth, tokens)
        return perf_counter() - start

    def traffic(self) -> Traffic:
        """Add up what a token reads, from the graphs that run."""
        record, manifest = self._artifact.target("cpu"), self._artifact.manifest
        graphs = {name: path for name, path in record.graphs.items() if name.startswith("layer")}
        graphs["head"] = record.graphs["head"]
        read = sum(_read_bytes(self._artifact.folder / path) for path in graphs.values())
        return Traffic(weights=read, cache=record.cache.token_bytes * len(manifest.layers))

    def _fill(self, count: int) -> None:
        chunk = self._engine.limits.prefill_chunk
        while self._filled < count:
            size = min(chunk, self._engine.limits.max_tokens - self._filled)
            self._step(self._filled, size)
            self._filled += size

    def _step(self, place: int, tokens: int) -> None:
        ids = self._random.integers(0, self._engine.vocab_size, tokens)
        hidden = self._engine.embed(ids)[None]
        self._engine.step_greedy([SLOT], hidden, np.array([place]), np.array([tokens - 1]))


def _read_bytes(graph: Path) -> float:
    """Bytes of a lowered graph's weights, of experts only those that one token has."""
    import onnx_ir as ir

    model = ir.load(graph)
    experts = next((node for node in model.graph if node.op_type == "BlockExperts"), None)
    stacked = {value.name for value in experts.inputs if value is not None} if experts else set()
    total = 0.0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        share = 1.0
        if experts is not None and name in stacked:
            share = experts.attributes["num_computed"].as_int() / tensor.shape.numpy()[0]
        total += share * tensor.nbytes
    return total
