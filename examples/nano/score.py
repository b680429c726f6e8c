"""Score a checkpoint in torch: `python -m examples.nano.score CHECKPOINT [--set heldout]`.

Greedy answers of the training form of the model, in fp32 with the stored (bf16) weights; exact
match of the answer behind the thinking. `--without` breaks the model or its input on purpose.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.prompt.encoder import PromptEncoder
from runtime.prompt.special_tokens import THINK_END

from .batches import Encoder
from .checkpoint_files import load_model
from .model import NanoModel
from .question_sets import read_set
from .questions import Example

HERE = Path(__file__).parent
MAX_REPLY = 32
"""Tokens; the longest reply of the task has 27."""
_CHUNK = 50
ABLATIONS = ("bias", "pictures", "right-pictures")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One example and what the model wrote."""

    example: Example
    reply: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is the expected one, character by character."""
        return self.reply.rpartition(THINK_END)[2].strip() == self.example.answer


@torch.no_grad()
def answer(model: NanoModel, encoder: Encoder, examples: Sequence[Example]) -> list[Answered]:
    """Answer greedily."""
    answered = []
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        replies = _answer_chunk(model, encoder, chunk)
        answered += [
            Answered(example=example, reply=encoder.decode(reply))
            for example, reply in zip(chunk, replies, strict=True)
        ]
    return answered


def _answer_chunk(
    model: NanoModel, encoder: Encoder, examples: Sequence[Example]
) -> list[list[int]]:
    prompts, seen = [], []
    for example in examples:
        rows = [_see(model, encoder, picture) for picture in example.pictures]
        ids = encoder.prompt_ids(example.question, len(rows))
        prompts.append(encoder.expand(ids, [len(one) for one in rows]))
        seen += rows
    rows_of_all = torch.cat(seen) if seen else None
    replies: list[list[int]] = [[] for _ in examples]
    for _ in range(MAX_REPLY):
        open_ones = [encoder.end_id not in reply[-1:] for reply in replies]
        if not any(open_ones):
            break
        following = _next_ids(model, prompts, replies, rows_of_all)
        for reply, token, is_open in zip(replies, following, open_ones, strict=True):
            if is_open:
                reply.append(token)
    return [[token for token in reply if token != encoder.end_id] for reply in replies]


def _see(model: NanoModel, encoder: Encoder, picture: Any) -> Tensor:  # noqa: ANN401  # PIL's class
    patches = torch.from_numpy(encoder.rule.patchify(picture).patches)
    return model.see(patches[None])[0]


def _next_ids(
    model: NanoModel, prompts: list[list[int]], replies: list[list[int]], rows: Tensor | None
) -> list[int]:
    sequences = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    length = max(len(one) for one in sequences)
    ids = torch.tensor([one + [0] * (length - len(one)) for one in sequences])
    lengths = torch.tensor([len(one) for one in sequences])[:, None]
    places = torch.arange(length)[None]
    logits = model(ids, rows, real=places < lengths, wanted=places == lengths - 1)
    chosen: list[int] = logits.argmax(dim=-1).tolist()
    return chosen


def summarise(answered: Sequence[Answered], model: NanoModel) -> dict[str, Any]:
    """Give exact match in all and per kind, and each expert's share of the tokens per layer."""
    asked = Counter(one.example.kind for one in answered)
    right = Counter(one.example.kind for one in answered if one.is_right)
    return {
        "exact_match": round(sum(right.values()) / len(answered), 4),
        "kinds": {kind: round(right[kind] / count, 4) for kind, count in asked.items()},
        "examples": len(answered),
        "expert_loads": [
            [round(share, 4) for share in (layer.loads / layer.loads.sum()).tolist()]
            for layer in model.moe_layers()
        ],
    }


def load(folder: Path) -> tuple[NanoModel, Encoder]:
    """Open a checkpoint folder."""
    model = load_model(folder).eval()
    return model, Encoder(PromptEncoder.load(folder, model.config))


def zero_bias(model: NanoModel) -> None:
    """Let the scores alone choose the experts."""
    for layer in model.moe_layers():
        layer.gate.e_score_correction_bias.zero_()


def without_pictures(examples: Sequence[Example]) -> list[Example]:
    """Ask the same questions about nothing."""
    return [replace(example, pictures=()) for example in examples]


def with_wrong_pictures(examples: Sequence[Example]) -> list[Example]:
    """Give each example the pictures of another one with as many."""
    shuffled = list(examples)
    for count in (1, 2):
        places = [place for place, one in enumerate(examples) if len(one.pictures) == count]
        for place, other in zip(places, [*places[1:], *places[:1]], strict=True):
            shuffled[place] = replace(examples[place], pictures=examples[other].pictures)
    return shuffled


def main() -> None:
    """Read the command line, score, write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=HERE / "checkpoint")
    parser.add_argument("--set", type=Path, default=HERE / "heldout", help="folder of a set")
    parser.add_argument("--without", choices=ABLATIONS)
    parser.add_argument("--failures", action="store_true", help="list wrong answers on stderr")
    options = parser.parse_args()
    model, encoder = load(options.checkpoint)
    examples = read_set(options.set)
    if options.without == "bias":
        zero_bias(model)
    if options.without == "pictures":
        examples = without_pictures(examples)
    if options.without == "right-pictures":
        examples = with_wrong_pictures(examples)
    answered = answer(model, encoder, examples)
    for index, one in enumerate(answered, start=1):
        if options.failures and not one.is_right:
            sys.stderr.write(f"{index:04d} {one.example.answer}: {one.reply}\n")
    sys.stdout.write(json.dumps(summarise(answered, model)) + "\n")


if __name__ == "__main__":
    main()
