"""The conversations that judged a recipe, read once for everything that judges a target by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from runtime.artifact.folder import CONFIG_FILE, Artifact
from runtime.config import KimiVLConfig
from runtime.errors import InputError
from runtime.prompt.encoder import PromptEncoder

from ..data.examples import Example
from ..data.samples import Sample, content_hash, encode
from ..data.turns import encode_turns, turns_of
from .distance import Reference

REFERENCE_PATH = "calibration/reference.safetensors"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Held-out conversations, and what fp32 predicts behind them."""

    examples: Sequence[Example]
    samples: Sequence[Sample]
    """The same, encoded."""
    turns: Sequence[Sample]
    """Some of them turn by turn; none in an artifact of an earlier version."""
    reference: Reference
    """At the judged positions of samples, then of turns."""
    prompts: PromptEncoder

    @classmethod
    def load(cls, artifact: Artifact, held_out: Sequence[Example]) -> "Judged":
        """Encode what judged an artifact's recipe.

        Raises:
            InputError: these are not the conversations that did.
        """
        data = artifact.manifest.calibration["data"]
        if content_hash(held_out) != data["held_out"]:
            raise InputError("the held-out set is not the one that judged this recipe")
        config = KimiVLConfig.load(artifact.model_folder / CONFIG_FILE)
        prompts = PromptEncoder.load(artifact.model_folder, config)
        turns = turns_of(held_out) if data.get("turns") else []
        return cls(
            examples=held_out,
            samples=[encode(one, prompts, data["max_tokens"]) for one in held_out],
            turns=encode_turns(turns, prompts, data["max_tokens"]),
            reference=Reference.load(artifact.folder / REFERENCE_PATH),
            prompts=prompts,
        )

    @property
    def references(self) -> list[Reference]:
        """That of each sample, then of each turn."""
        judged = [len(one.judged) for one in (*self.samples, *self.turns)]
        return [self.reference.part(start, end) for start, end in pairwise(np.cumsum([0, *judged]))]
