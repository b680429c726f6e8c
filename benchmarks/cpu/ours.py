"""Our side of the CPU benchmark: an open engine that decodes and prefills at any depth."""

from pathlib import Path

from engines.cpu.traffic import Traffic
from engines.measure.filled import FilledSlots
from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.cpu.weights_place import WeightsPlace


class Ours:
    """An artifact of the released sizes on target `cpu`."""

    def __init__(self, folder: Path, *, threads: int = 2, weights: WeightsPlace = "packed") -> None:
        """Open it."""
        self._artifact = Artifact.open(folder)
        engine = CpuEngine(self._artifact, num_threads=threads, weights=weights)
        self._slots = FilledSlots(engine, vocab_size=engine.vocab_size)

    def decode(self, depth: int, tokens: int) -> list[float]:
        """Decode random tokens behind `depth` others: seconds for each."""
        return self._slots.decode(depth, tokens)

    def prefill(self, tokens: int, depth: int = 0) -> float:
        """Run a prompt of random tokens behind `depth` others: seconds."""
        return self._slots.prefill(tokens, depth)

    def traffic(self) -> Traffic:
        """Add up what a token reads, from the graphs that run."""
        return Traffic.of(self._artifact)
