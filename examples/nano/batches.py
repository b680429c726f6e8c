"""Turns examples into tensors: pictures of equal grids together, answers marked.

The stream of training batches follows from a seed and the step alone, so that a run can be taken up
anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from runtime.prompt.encoder import PromptEncoder
from runtime.prompt.messages import parse_messages
from runtime.prompt.patches import ImageRule
from runtime.prompt.special_tokens import IM_END

from .questions import (
    Example,
    draw_cells,
    draw_ease,
    draw_example,
    draw_seed,
    draw_size,
    draw_text_example,
)

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples with the same number of pictures, whose grids agree place by place."""

    patches: tuple[Tensor, ...]
    """For each place of a picture (B, h, w, 3 * 14 * 14) fp32."""
    ids: Tensor
    """(B, S) int64: prompt, reply, padding."""
    targets: Tensor
    """(B, S) int64: the token that follows, where it belongs to the reply; else `IGNORED`."""
    real: Tensor
    """(B, S) bool: no padding."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the batches look like, and how they grow harder."""

    batch: int = 32
    """Examples in a batch."""
    text_every: int = 10
    """Each so many steps, a batch has no pictures at all."""
    reading_steps: int = 800
    """First steps, with no questions but what a picture says."""
    ramp: tuple[tuple[int, float], ...] = ((700, 0.0), (2400, 0.27))
    """How far pictures are from plain (0) to all the variety (1) at some steps; linear between."""

    def level(self, step: int) -> float:
        """Tell how far a step is from plain pictures (0) to all the variety (1)."""
        steps, values = zip(*self.ramp, strict=True)
        return float(np.interp(step, steps, values))


class Encoder:
    """Encodes examples as the checkpoint's own files say."""

    def __init__(self, prompts: PromptEncoder) -> None:
        self._prompts = prompts
        self._end = prompts.tokenizer.special_id(IM_END)
        self.prompt_ids = lru_cache(maxsize=100_000)(self._prompt_ids)

    @property
    def rule(self) -> ImageRule:
        """The image rule."""
        return self._prompts.rule

    @property
    def end_id(self) -> int:
        """What ends a reply."""
        assert self._end is not None
        return self._end

    def _prompt_ids(self, question: str, num_pictures: int) -> tuple[int, ...]:
        """Encode a question, with one media id for each picture."""
        parts = [{"type": "image", "image": b""}] * num_pictures
        content = [*parts, {"type": "text", "text": question}]
        messages = parse_messages([{"role": "user", "content": content}])
        prompts = self._prompts
        return tuple(
            prompts.template.encode(messages, prompts.tokenizer, add_generation_prompt=True)
        )

    def expand(self, ids: Sequence[int], counts: Sequence[int]) -> list[int]:
        """Repeat each media id as often as its picture has tokens."""
        media = self._prompts.media_token_id
        left = iter(counts)
        return [i for one in ids for i in ([media] * next(left) if one == media else [one])]

    def reply_ids(self, reply: str) -> list[int]:
        """Encode what the model is to write, with its end."""
        return [*self._prompts.tokenizer.encode(reply), self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids back into text."""
        return self._prompts.tokenizer.decode(ids)

    def pack(self, examples: Sequence[Example]) -> Batch:
        """Make a batch of examples whose grids agree."""
        places = list(zip(*(example.pictures for example in examples), strict=True))
        patches = tuple(
            torch.from_numpy(np.stack([self.rule.patchify(one).patches for one in place]))
            for place in places
        )
        counts = [place.shape[1] * place.shape[2] // 4 for place in patches]
        rows = []
        for example in examples:
            prompt = self.expand(self.prompt_ids(example.question, len(counts)), counts)
            rows.append((prompt, self.reply_ids(example.reply)))
        return _tensors(patches, rows)


def _tensors(patches: tuple[Tensor, ...], rows: list[tuple[list[int], list[int]]]) -> Batch:
    # The last token of a reply is never an input.
    length = max(len(prompt) + len(reply) for prompt, reply in rows) - 1
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    targets = torch.full_like(ids, IGNORED)
    real = torch.zeros_like(ids, dtype=torch.bool)
    for index, (prompt, reply) in enumerate(rows):
        inputs = [*prompt, *reply[:-1]]
        ids[index, : len(inputs)] = torch.tensor(inputs)
        targets[index, len(prompt) - 1 : len(inputs)] = torch.tensor(reply)
        real[index, : len(inputs)] = True
    return Batch(patches=patches, ids=ids, targets=targets, real=real)


def draw_batch(encoder: Encoder, plan: Plan, seed: int, step: int) -> Batch:
    """Draw the batch of one training step: no picture, one or two."""
    rng = draw_seed(seed, step)
    if step % plan.text_every == plan.text_every - 1:
        return encoder.pack([draw_text_example(rng) for _ in range(plan.batch)])
    level = plan.level(step)
    only_reads = step < plan.reading_steps
    num_pictures = 1 if only_reads else 1 + step % 2
    cells = draw_cells(rng, num_pictures, level)
    examples = []
    for _ in range(plan.batch):
        sizes = tuple(draw_size(rng, one, level) for one in cells)
        kind = "read" if only_reads else None
        examples.append(draw_example(rng, sizes, draw_ease(rng, level), kind))
    return encoder.pack(examples)
