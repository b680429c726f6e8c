"""The decoder's layers through the engine, beside the same torch modules run eagerly in fp32."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engines.build import build_target
from engines.options import BuildOptions
from export.checkpoint.reader import Checkpoint
from export.graphs import plan_graphs
from export.recipe.reading import load_recipe
from export.sources import load_parameters, parameter_sources
from export.stage import ExportOptions, export_checkpoint
from export.synthetic.folder import write_synthetic
from runtime.artifact.folder import Artifact
from runtime.config import DecoderConfig
from runtime.engine.cpu.engine import CpuEngine
from runtime.engine.protocol import FloatArray

from .pairs import Pair, time_pair


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model to time: which checkpoint, how much of it, how much work."""

    name: str
    shape: str
    layers: tuple[int, ...]
    recipe: str
    chunk: int
    context: int


CASES = (
    Case(name="tiny", shape="tiny", layers=(0, 1, 2), recipe="fp32", chunk=64, context=256),
    Case(
        name="2 full-size layers",
        shape="full",
        layers=(0, 1),
        recipe="bf16",
        chunk=128,
        context=256,
    ),
)


def time_case(case: Case, workplace: Path) -> Iterator[Pair]:
    """Time one token and one prefill chunk behind a filled context."""
    folder = workplace / f"{case.shape}-{case.recipe}"
    checkpoint = _checkpoint(case, workplace)
    options = ExportOptions(recipe=load_recipe(case.recipe), layers=case.layers)
    export_checkpoint(checkpoint, folder, options)
    capacity = case.context + case.chunk
    build_target(folder, "cpu", BuildOptions(max_tokens=capacity))
    engine = CpuEngine(Artifact.open(folder))
    peer = EagerDecoder(checkpoint, case.layers, capacity)
    width = checkpoint.config.decoder.width
    for name, tokens in (("one token", 1), (f"{case.chunk} tokens", case.chunk)):
        hidden = np.random.default_rng(0).standard_normal((1, tokens, width), dtype=np.float32)
        pair = time_pair(
            f"{case.name}: {name} behind {case.context}",
            partial(_step, engine, hidden, case.context),
            partial(peer.step, hidden, case.context),
        )
        found, expected = _step(engine, hidden, 0), peer.step(hidden, 0)
        error = np.abs(found - expected).max() / np.abs(expected).max()
        if not error < 1e-3:
            raise RuntimeError(f"{pair.name}: the two differ by {error:.1e}; no time is reported")
        yield pair


class EagerDecoder:
    """Our torch modules, one after the other, with a cache of their own."""

    def __init__(self, checkpoint: Checkpoint, layers: tuple[int, ...], capacity: int) -> None:
        plans = plan_graphs(checkpoint.config, torch.float32, layers, taps=False)
        decoder: DecoderConfig = checkpoint.config.decoder
        self.modules: list[nn.Module] = []
        for plan in plans[2:]:  # vision and projector are not part of this
            module = plan.build().eval()
            load_parameters(module, parameter_sources(module, plan.prefix, checkpoint))
            self.modules.append(module)
        shape = (1, 1, capacity, decoder.latent_width)
        self.caches: list[Tensor] = [torch.zeros(shape) for _ in layers]

    def step(self, hidden: FloatArray, length: int) -> FloatArray:
        """Append (1, S, C) behind `length` tokens and return the last token's logits (1, V)."""
        *layers, head = self.modules
        state, lengths = torch.from_numpy(hidden), torch.tensor([length])
        last = length + hidden.shape[1]
        with torch.inference_mode():
            for layer, cache in zip(layers, self.caches, strict=True):
                state, written = layer(state, cache[:, :, :last], lengths)
                cache[:, :, :last] = written
            logits: FloatArray = head(state, torch.tensor([hidden.shape[1] - 1])).numpy()
        return logits


def _step(engine: CpuEngine, hidden: FloatArray, length: int) -> FloatArray:
    rows = np.array([hidden.shape[1] - 1])
    return engine.step([0], hidden, np.array([length]), rows)


def _checkpoint(case: Case, workplace: Path) -> Checkpoint:
    folder = workplace / f"{case.shape}-checkpoint"
    if not folder.exists():
        write_synthetic(folder, shape=case.shape, seed=0)
    return Checkpoint.open(folder, layers=case.layers)
