"""Compiled models and their oracles, each made once for all tests of this folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.build import build_target
from engines.options import BuildOptions
from export.checkpoint.reader import Checkpoint
from export.recipe.reading import load_recipe
from export.stage import ExportOptions, export_checkpoint
from export.synthetic.folder import write_synthetic
from runtime import Prompt, Session
from tests.oracles import model as oracles

from .configs import NAMES, write_config

MAX_TOKENS, MAX_SLOTS, PREFILL_CHUNK = 400, 3, 32


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A synthetic checkpoint and the artifact made from it."""

    checkpoint: Path
    artifact: Path
    session: Session


Compile = Callable[[str, str], Compiled]


@pytest.fixture(scope="session")
def compile_model(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compile a config of `configs.py` in a recipe, once each."""
    root = tmp_path_factory.mktemp("parity")

    @cache
    def checkpoint(name: str) -> Path:
        shape = write_config(name, root)
        return write_synthetic(root / name, shape=shape, seed=7, dtype="float32", lazy=False)

    @cache
    def compiled(name: str, recipe: str) -> Compiled:
        artifact = root / f"{name}-{recipe}"
        options = ExportOptions(recipe=load_recipe(recipe), taps=True)
        export_checkpoint(Checkpoint.open(checkpoint(name)), artifact, options)
        build = BuildOptions(
            max_tokens=MAX_TOKENS, max_slots=MAX_SLOTS, prefill_chunk=PREFILL_CHUNK
        )
        build_target(artifact, "cpu", build)
        return Compiled(
            checkpoint=checkpoint(name), artifact=artifact, session=Session.open(artifact)
        )

    return compiled


@pytest.fixture(scope="session", params=NAMES)
def fp32(request: pytest.FixtureRequest, compile_model: Compile) -> Compiled:
    """Each config, in fp32."""
    return compile_model(request.param, "fp32")


@pytest.fixture(scope="session")
def whole_oracle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Compiled], Any]:
    """Give the transformers model of a compiled checkpoint."""
    root = tmp_path_factory.mktemp("oracle")

    @cache
    def load(checkpoint: Path) -> Any:  # noqa: ANN401  # transformers has no types
        return oracles.load_whole(checkpoint, root / checkpoint.name)

    return lambda compiled: load(compiled.checkpoint)


def make_prompt(session: Session, sizes: list[tuple[int, int]], text: str, seed: int = 0) -> Prompt:
    """Make a prompt with noise images of the given widths and heights, text between them."""
    rng = np.random.default_rng(seed)
    content: list[dict[str, Any]] = []
    for width, height in sizes:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        content.append({"type": "image", "image": Image.fromarray(pixels)})
        content.append({"type": "text", "text": text})
    return session.encode([{"role": "user", "content": content or text}])
