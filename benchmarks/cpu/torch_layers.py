"""Two layers of the released sizes beside eager and compiled torch: one dense, one with experts.

    python -m benchmarks.cpu.torch_layers [FOLDER] [--turns 5]

FOLDER is out/bench/int4-two if it is left out, and is written (2 GB, a minute) if it is missing.
Takes 8 GiB of memory, a C++ compiler for inductor, and four minutes.

Theirs is transformers' `deepseek_v3` without embedding and head, random weights, `sdpa` attention:
in bf16 and fp32, eager and through `torch.compile`. Its cache is as large as the row needs and no
larger; it holds latents, and all of them are expanded at every step. Ours is int4 with an int8
cache, so that this compares deployments and not kernels: 4.1 bits for a weight beside 16 or 32.
Pairs are taken in changing order in one process.

Adds `torch_layers` to `benchmarks/cpu/results.json`: seconds for both layers, and ratios.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import TYPE_CHECKING

import numpy as np

from engines.measure.disturbance import DisturbanceWatch
from runtime.artifact.folder import Artifact
from runtime.engine.cpu.engine import CpuEngine

from ..record import conditions
from .repeated_layers import WRITTEN
from .results import merge_results, ratio

if TYPE_CHECKING:
    import torch

FOLDER = Path("out/bench/int4-two")
RECIPE = Path(__file__).with_name("int4-head4-kv8.toml")
MAX_TOKENS = 2048
PAUSE_S = 0.05
"""Between the sides: idle threads of OpenMP spin for a while."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is timed: some steps one behind the other; the median step counts."""

    name: str
    depth: int
    """Tokens in the cache before the first step."""
    tokens: int
    """Of a step."""
    steps: int


ROWS = (
    Row(name="decode_0", depth=0, tokens=1, steps=12),
    Row(name="decode_1024", depth=1024, tokens=1, steps=12),
    Row(name="prefill_512", depth=0, tokens=512, steps=1),
)
EXPERTS = "grouped_mm"
"""Of transformers' ways through the experts the fastest one: `batched_mm` copies the weights of
each token's experts, and the loop over experts cannot be compiled as a whole."""

Step = Callable[[int, int], None]
"""Appends some tokens behind a depth."""
Pairs = list[dict[str, float]]


def main() -> int:
    """Measure and add the results."""
    parser = argparse.ArgumentParser(description="two layers beside torch")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    _write_ours(given.folder)
    ours = our_step(given.folder, given.threads)
    samples: dict[str, Pairs] = {}
    watch = DisturbanceWatch()
    for dtype in ("bfloat16", "float32"):
        theirs = TorchLayers(getattr(torch, dtype))
        for row in ROWS:
            for way in theirs.ways:
                name = f"{dtype}_{way}_{row.name}"
                step = theirs.step_of(way, row)
                with watch.timed():
                    samples[name] = in_turn(row, ours, step, given.turns)
                sys.stderr.write(f"{name}: {samples[name]}\n")
    found = {name: round(ratio(pairs), 3) for name, pairs in samples.items()}
    packages = ("torch", "transformers", "onnxruntime", "numpy")
    record = {
        "conditions": conditions(packages, threads=given.threads),
        "experts": EXPERTS,
        "disturbance": watch.total.fields(),
        "ratios": found,
        "samples": samples,
    }
    merge_results({"torch_layers": record})
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


def _write_ours(folder: Path) -> None:
    from export.recipe.reading import load_recipe

    from .full_artifact import write_full_artifact

    if not folder.exists():
        recipe = load_recipe(str(RECIPE))
        write_full_artifact(folder, recipe, max_tokens=MAX_TOKENS, layers=WRITTEN)


def our_step(folder: Path, threads: int) -> Step:
    """Open our layers; a step asks for no logits, so that the head does not run."""
    engine = CpuEngine(Artifact.open(folder), num_threads=threads, weights="packed")
    random, none = np.random.default_rng(0), np.zeros(0, dtype=np.int64)

    def step(tokens: int, depth: int) -> None:
        hidden = engine.embed(random.integers(0, engine.vocab_size, tokens))[None]
        engine.step([0], hidden, np.array([depth]), none)

    return step


class TorchLayers:
    """The same two layers in torch."""

    def __init__(self, dtype: "torch.dtype") -> None:
        """Draw weights: norms are ones, everything else has a deviation of 0.02."""
        import torch

        sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # hidden: built for CUDA's torch
        from transformers import DeepseekV3Config, DeepseekV3Model

        from export.synthetic.configs import FULL_CONFIG

        text = {**FULL_CONFIG["text_config"], "vocab_size": 8, "num_hidden_layers": len(WRITTEN)}
        unused = ("bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype")
        fields = {name: value for name, value in text.items() if name not in unused}
        self._config = DeepseekV3Config(**fields)
        self._dtype = dtype
        self._model = DeepseekV3Model(self._config).to(dtype).eval()
        self._model.set_experts_implementation(EXPERTS)
        self._ways = {"eager": self._model, "compiled": torch.compile(self._model)}

    @property
    def ways(self) -> tuple[str, ...]:
        """`eager` and `compiled`."""
        return tuple(self._ways)

    def step_of(self, way: str, row: Row) -> Step:
        """Give a step over a cache that is full of random numbers."""
        import torch
        from transformers import StaticCache

        config, dtype, run = self._config, self._dtype, self._ways[way]
        cache = StaticCache(config=config, max_cache_len=row.depth + row.tokens * row.steps)
        widths = (config.kv_lora_rank, config.qk_rope_head_dim)
        empty = [torch.zeros(1, 1, 1, width, dtype=dtype) for width in widths]
        for layer in cache.layers:
            layer.lazy_initialization(*empty)
            layer.keys.normal_()
            layer.values.normal_()

        def step(tokens: int, depth: int) -> None:
            for layer in cache.layers:
                layer.cumulative_length.fill_(depth)
            hidden = torch.randn(1, tokens, config.hidden_size, dtype=dtype)
            positions = torch.arange(depth, depth + tokens)[None]
            with torch.inference_mode():
                run(inputs_embeds=hidden, position_ids=positions, past_key_values=cache)

        return step


def in_turn(row: Row, ours: Step, theirs: Step, turns: int) -> Pairs:
    """Run both once unmeasured, then in turn: seconds of the median step."""
    sides = {"ours_s": ours, "theirs_s": theirs}
    for step in sides.values():
        _median_step(row, step)
    pairs = []
    for turn in range(turns):
        pair: dict[str, float] = {}
        for name in sorted(sides, reverse=turn % 2 == 1):
            sleep(PAUSE_S)
            pair[name] = _median_step(row, sides[name])
        pairs.append(pair)
    return pairs


def _median_step(row: Row, step: Step) -> float:
    seconds = []
    for number in range(row.steps):
        start = perf_counter()
        step(row.tokens, row.depth + number * row.tokens)
        seconds.append(perf_counter() - start)
    return median(seconds)


if __name__ == "__main__":
    sys.exit(main())
