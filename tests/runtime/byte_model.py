"""A model that says what a test wants, byte by byte, and short ways to ask it."""

from collections.abc import Sequence

import numpy as np

from runtime.generation.channels import Piece
from runtime.generation.generate import generate
from runtime.generation.request import Request, Result
from runtime.generation.sampling import Sampling
from runtime.generation.stopping import GenerationLimits
from runtime.prompt.encoder import Prompt
from runtime.prompt.patches import PatchedImage
from runtime.prompt.tokenizer import Tokenizer
from tests.runtime.fake_engine import FakeEngine, make_limits, scripted_table

# One id for each byte, so that markers, stop strings and characters are cut everywhere.
END, MEDIA, EOS = 256, 257, 258
VOCAB = 262  # padded: the last three ids have no text
TOKENIZER = Tokenizer(
    {bytes([value]): value for value in range(256)},
    {"<|im_end|>": END, "<|media_pad|>": MEDIA, "[EOS]": EOS},
)
OPENING, CLOSING = list("◁think▷".encode()), list("◁/think▷".encode())


def make_prompt(*ids: int, images: Sequence[PatchedImage] = ()) -> Prompt:
    return Prompt(ids=np.array(ids, dtype=np.int64), images=tuple(images), media_token_id=MEDIA)


def make_image(height: int, width: int, value: float) -> PatchedImage:
    return PatchedImage(patches=np.full((height, width, 12), value, dtype=np.float32))


def make_engine(
    script: Sequence[int],
    prompt_len: int,
    *,
    max_tokens: int = 256,
    prefill_chunk: int = 4,
    max_patches: int = 64,
) -> FakeEngine:
    table = scripted_table(script, prompt_len=prompt_len, vocab_size=VOCAB, max_tokens=max_tokens)
    limits = make_limits(
        max_tokens=max_tokens, prefill_chunk=prefill_chunk, max_patches=max_patches
    )
    return FakeEngine(table, limits)


PROMPT = make_prompt(*b"a question")


def make_request(
    limits: GenerationLimits | None = None,
    *,
    prompt: Prompt = PROMPT,
    sampling: Sampling | None = None,
) -> Request:
    return Request(prompt, stop_ids=frozenset({END, EOS}), sampling=sampling, limits=limits)


def result_of(request: Request) -> Result:
    assert request.result is not None
    return request.result


def text_of(pieces: Sequence[Piece], channel: str = "answer") -> str:
    return "".join(piece.text for piece in pieces if piece.channel == channel)


def ids_of(pieces: Sequence[Piece]) -> tuple[int, ...]:
    return tuple(token_id for piece in pieces for token_id in piece.token_ids)


def answer(
    text: str | bytes, limits: GenerationLimits | None = None, *, end: Sequence[int] = (END,)
) -> tuple[list[Piece], Result]:
    """Let the model say a text, byte by byte, and then the ids of `end`."""
    script = [*(text.encode() if isinstance(text, str) else text), *end]
    request = make_request(limits)
    pieces = list(generate(make_engine(script, len(PROMPT)), TOKENIZER, request))
    return pieces, result_of(request)
