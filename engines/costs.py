"""What export and calibration take in memory, disk and time, and the form of all such estimates.

Arithmetic on sizes, with what was measured. Memory is anonymous memory at the peak; files that are
read or written pass through the page cache besides. Factors stand beside the run that they come
from: two decoder layers of the released sizes with both towers, embedding and head; ONNX Runtime
1.32, torch 2.13.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

from export.recipe.sizes import Parameter, stored_bytes
from runtime import names

from . import rates
from .work import IMAGE_SHARE, Work

TORCH_BYTES = 400_000_000
"""A process with torch and onnx loaded; seen: 0.2 to 0.4 GB."""
BLOCK_BYTES = 200_000_000
"""Blocks of 16 Mi values on their way to a file; seen: 0.51 GB for a whole export."""
SEED_BYTES = 6
"""Of a value that is made from a seed: in fp32, then in 16 bits; seen: 2.4 GB for 3.4e8 values."""

MATRIX_FACTOR = 3
"""A matrix on its way to be rounded, times its size in fp32; seen: 3.0 for the head."""
ROUND_FACTOR, ROUND_BYTES = 7, 4 << 24
"""Temporaries while 16 Mi numbers of it are rounded and compared, times their size in fp32; seen:
6.6."""
STACK_FACTOR = 2
"""Temporaries while experts are balanced, times the largest stack in fp32; seen: 2.0."""
SCORE_COPIES, LOGIT_COPIES = 3, 2
"""Of attention scores and of logits while a sample runs; counted in the code, not measured."""

START_S = 2.0
"""Until a stage has loaded its packages."""
REFERENCE_BYTES = 512
"""Kept of a judged position: 64 tokens with their log-probabilities."""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage."""

    stage: str
    memory_bytes: int
    memory_of: str
    """What the memory is made of."""
    mapped_bytes: int = 0
    """Of files that stay mapped and are read again and again: page cache, if there is room."""
    disk_bytes: int
    """Free space that the stage needs."""
    left_bytes: int
    """What of it stays."""
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How long a request takes, once everything is loaded."""

    kernels: Literal["own", "stock"]
    """Those of `make ops`, or ONNX Runtime's."""
    conditions: str
    """What the estimate is for."""
    largest_image_s: float
    prompt_tokens_per_s: float
    """Behind nothing."""
    new_tokens_per_s: float
    """Behind nothing."""
    last_tokens_per_s: float
    """Behind a full slot."""
    token_bytes: int
    """Of weights that a new token reads."""


def artifact_cost(work: Work) -> StageCost:
    """Estimate the stage that writes the neutral artifact: export, or calibrate where needed."""
    return _calibrate(work) if work.recipe.is_quantised else _export(work)


def _export(work: Work) -> StageCost:
    memory, made_of = _export_bytes(work)
    return StageCost(
        stage="export",
        memory_bytes=TORCH_BYTES + memory,
        memory_of=made_of,
        disk_bytes=work.weights_bytes,
        left_bytes=work.weights_bytes,
        time_s=START_S + rates.CONVERT.time_s(_values(work.parameters)) + _trace_s(work),
    )


def _export_bytes(work: Work) -> tuple[int, str]:
    """Bytes beside the process while values are written, and what they are."""
    if work.is_made_from_seed:
        largest = max(one.count for one in work.parameters)
        return SEED_BYTES * largest, "the largest tensor, made in fp32"
    return BLOCK_BYTES, "blocks of a tensor"


def _calibrate(work: Work) -> StageCost:
    memory, made_of = max(_calibrate_peaks(work), key=itemgetter(0))  # of equals the first
    config, samples = work.config, work.samples
    scales = sum(stored_bytes(one, work.recipe).scales for one in work.parameters)
    left = work.weights_bytes + scales + samples.held_out_tokens * REFERENCE_BYTES
    width = max(config.decoder.width, int(IMAGE_SHARE * config.vision.merged_width))
    rows = 2 * 4 * width * (samples.all_tokens + samples.held_out_tokens)
    return StageCost(
        stage="calibrate",
        memory_bytes=TORCH_BYTES + int(memory),
        memory_of=made_of,
        disk_bytes=left + rows,
        left_bytes=left,
        time_s=_calibrate_s(work),
    )


def _calibrate_peaks(work: Work) -> Iterator[tuple[float, str]]:
    """Bytes beside the process, and what they are: one for each thing that could be the most."""
    decoder, tokens = work.config.decoder, work.samples.tokens
    longest = work.samples.longest_tokens
    yield _export_bytes(work)
    for graph, members in work.graphs.items():
        whole = 4 * _values(members)
        codes = [one for one in members if work.codes_of(one)]
        matrix = max((4 * _matrix_values(one) for one in codes), default=0)
        rounding = MATRIX_FACTOR * matrix + ROUND_FACTOR * min(matrix, ROUND_BYTES)
        yield whole + rounding, f"{graph} in fp32, its largest matrix while it is rounded"
        stack = max((4 * one.count for one in codes if one.part == "experts"), default=0)
        yield whole + STACK_FACTOR * stack, f"{graph} in fp32, its experts while they are balanced"
        if graph == names.HEAD:
            logits = 4 * decoder.vocab_size * (1 - IMAGE_SHARE) * tokens
            yield whole + LOGIT_COPIES * logits, f"{graph} in fp32, logits of a sample"
        elif graph not in (names.VISION, names.PROJECTOR):
            scores = 4 * decoder.num_heads * longest**2
            yield whole + SCORE_COPIES * scores, f"{graph} in fp32, attention of a sample"


def _calibrate_s(work: Work) -> float:
    samples, decoder = work.samples, work.config.decoder
    codes = [one for one in work.parameters if work.codes_of(one)]
    searched = [one for one in codes if work.is_searched(one)]
    of_graphs = sum(_values(members) for members in work.graphs.values())
    read = sum(one.count * one.read for one in work.parameters if one.part != "embedding")
    towers = _values([*work.graphs[names.VISION], *work.graphs[names.PROJECTOR]])
    of_token = 2 * (float(read) + IMAGE_SHARE * 4 * towers)
    of_token += 2 * decoder.num_heads * 2 * decoder.latent_width * samples.tokens * len(work.layers)
    return (
        START_S
        + rates.LOAD_MODULE.time_s(of_graphs)
        + rates.SEARCH.time_s(_values(searched))
        + rates.COMPARE.time_s(_values(codes))
        + rates.TORCH_FLOPS.time_s(of_token * (samples.all_tokens + samples.held_out_tokens))
        + rates.STORE_CODES.time_s(_values(work.parameters))
        + _trace_s(work)
    )


def _matrix_values(parameter: Parameter) -> int:
    """Numbers of what is rounded at a time: one expert's matrix, else the whole parameter."""
    return parameter.count // (parameter.shape[0] if parameter.part == "experts" else 1)


def _values(members: list[Parameter]) -> int:
    return sum(one.count for one in members)


def _trace_s(work: Work) -> float:
    return rates.TRACE_OTHERS_S + rates.TRACE_BLOCK_S * work.config.vision.num_layers
