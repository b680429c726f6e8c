"""What each stage takes in memory, disk and time: arithmetic on sizes, with what was measured.

Memory is anonymous memory at the peak; files that are read or written pass through the page cache
besides. Factors stand beside the run that they come from: two decoder layers of the released sizes
with both towers, embedding and head; ONNX Runtime 1.32, torch 2.13.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

from export.recipe.sizes import Parameter, stored_bytes
from runtime import names

from . import rates
from .work import IMAGE_SHARE, Work

TORCH_BYTES = 400_000_000
"""A process with torch and onnx loaded; seen: 0.2 to 0.4 GB."""
RUNTIME_BYTES = 200_000_000
"""A process with ONNX Runtime loaded."""
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
FOLD_FACTOR = 3.5
"""What ONNX Runtime holds while it turns the codes of a layer's experts into fp32, times those
experts in fp32; seen: 3.1 at load, 3.7 in verify."""
WIDEN_FP4_FACTOR = 3.5
"""Bytes for a value while FP4 codes become int8; counted in the code, not measured."""
SCORE_FACTOR = 4.5
"""Scores of a prompt's step, (chunk, heads, tokens) in fp32, held at a time; seen: 4.5."""
PATCH_FACTOR = 25
"""Numbers of the tower's width for a patch at the peak; seen: 25 for 1024 and 4096 patches."""

START_S = 2.0
"""Until a stage has loaded its packages."""
REFERENCE_BYTES = 512
"""Kept of a judged position: 64 tokens with their log-probabilities."""
BUILD_GRAPH_S = 0.6
"""The passes over a graph; seen: 3.2 s for five."""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage."""

    stage: str
    memory_bytes: int
    memory_of: str
    """What the memory is made of."""
    disk_bytes: int
    """Free space that the stage needs."""
    left_bytes: int
    """What of it stays."""
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How long a request takes, once everything is loaded."""

    largest_image_s: float
    prompt_tokens_per_s: float
    new_tokens_per_s: float


def artifact_cost(work: Work) -> StageCost:
    """Estimate the stage that writes the neutral artifact: export, or calibrate where needed."""
    return _calibrate(work) if work.recipe.is_quantised else _export(work)


def cpu_costs(work: Work, cache_bytes: int) -> list[StageCost]:
    """Estimate the stages of target `cpu` behind it.

    Args:
        work: the model.
        cache_bytes: of all slots.
    """
    return [_build(work), _verify(work), _run(work, cache_bytes)]


def cpu_speed(work: Work) -> Speed:
    """Estimate requests on target `cpu`, which computes in fp32."""
    vision, patches = work.config.vision, work.limits.max_patches
    pictures = [*work.graphs[names.VISION], *work.graphs[names.PROJECTOR]]
    encoded = 2 * patches * _values(pictures) + 4 * patches**2 * vision.width * vision.num_layers
    active = sum(_read_values(work, one) for one in work.parameters if one.part != "embedding")
    head = _values(work.graphs[names.HEAD])
    return Speed(
        largest_image_s=rates.FLOPS.time_s(encoded),
        prompt_tokens_per_s=1 / rates.FLOPS.time_s(2 * (active - head)),
        new_tokens_per_s=1 / rates.READ.time_s(4 * active),
    )


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
            scores = 4 * decoder.num_heads * tokens**2
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


def _build(work: Work) -> StageCost:
    """New weights: experts in the order of ONNX Runtime's operator, FP4 as int8."""
    fp4 = [one for one in work.parameters if work.codes_of(one) == "nvfp4"]
    moved = [one for one in work.parameters if one.part == "experts" and not work.experts]
    left = sum(stored_bytes(one, work.recipe).codes for one in moved)
    left += sum(one.count + 4 for one in fp4)
    largest = max((one.count for one in fp4), default=0)
    return StageCost(
        stage="build",
        memory_bytes=TORCH_BYTES + int(WIDEN_FP4_FACTOR * largest),
        memory_of="the largest FP4 stack as int8" if fp4 else "one expert",
        disk_bytes=left,
        left_bytes=left,
        time_s=START_S
        + rates.RELAY.time_s(_values([*moved, *fp4]))
        + BUILD_GRAPH_S * len(work.graphs),
    )


def _verify(work: Work) -> StageCost:
    peaks = {
        graph: 4 * _values(members) + _loaded_bytes(work, members) + _loading_bytes(work, members)
        for graph, members in work.graphs.items()
    }
    graph = max(peaks, key=lambda name: peaks[name])
    of_graphs = [one for members in work.graphs.values() for one in members]
    folded = [one for one in of_graphs if one.part == "experts" and work.experts]
    files = work.weights_bytes + _build(work).left_bytes
    return StageCost(
        stage="verify",
        memory_bytes=TORCH_BYTES + int(peaks[graph]),
        memory_of=f"{graph} as module and as session, what loading it takes",
        disk_bytes=0,
        left_bytes=0,
        time_s=START_S
        + rates.HASH.time_s(files)
        + rates.VERIFY.time_s(_values(of_graphs) - _values(folded))
        + rates.VERIFY_CODES.time_s(_values(folded)),
    )


def _run(work: Work, cache_bytes: int) -> StageCost:
    """All sessions, one loaded after the other; then the cache and a step."""
    kept = 0
    loading = 0.0
    for members in work.graphs.values():
        kept += _loaded_bytes(work, members)
        folded = _experts_bytes(members) if work.experts else 0
        loading = max(loading, kept + FOLD_FACTOR * folded)
    running = kept + cache_bytes + _step_bytes(work)
    besides = "the cache, one step" if running > loading else "what loading the experts takes"
    rate = rates.OPEN_CODES if work.recipe.is_quantised else rates.OPEN
    return StageCost(
        stage="run",
        memory_bytes=RUNTIME_BYTES + int(max(loading, running)),
        memory_of=f"weights in fp32{', experts mapped' if work.maps_experts else ''}; {besides}",
        disk_bytes=0,
        left_bytes=0,
        time_s=rate.time_s(kept / 4),
    )


def _loaded_bytes(work: Work, members: list[Parameter]) -> int:
    """What a session holds; experts that are fp32 in the file stay there, mapped."""
    mapped = _experts_bytes(members) if work.maps_experts else 0
    return 4 * _values(members) - mapped


def _loading_bytes(work: Work, members: list[Parameter]) -> float:
    """What is held beside module and session while a graph is verified."""
    experts = _experts_bytes(members)
    if experts and work.experts:
        return FOLD_FACTOR * experts
    return max(4 * max(one.count for one in members), experts * 2 / 3)  # gate and up are joined


def _experts_bytes(members: list[Parameter]) -> int:
    """Routed experts of a graph in fp32."""
    return 4 * _values([one for one in members if one.part == "experts"])


def _step_bytes(work: Work) -> int:
    """The larger of an image's values and a prompt step's."""
    decoder, limits = work.config.decoder, work.limits
    image = 4 * PATCH_FACTOR * work.config.vision.width * limits.max_patches
    scores = 4 * limits.prefill_chunk * decoder.num_heads * limits.max_tokens
    step = SCORE_FACTOR * scores
    if work.runs_all_experts:  # values of every expert for every token
        values = 3 * decoder.expert_width + decoder.width
        step = max(step, 4 * limits.prefill_chunk * decoder.num_experts * values)
    return int(max(image, step))


def _read_values(work: Work, parameter: Parameter) -> float:
    """Numbers of a parameter that `cpu` reads for one token."""
    is_whole = parameter.part == "experts" and work.runs_all_experts
    return parameter.count * (1.0 if is_whole else float(parameter.read))


def _matrix_values(parameter: Parameter) -> int:
    """Numbers of what is rounded at a time: one expert's matrix, else the whole parameter."""
    return parameter.count // (parameter.shape[0] if parameter.part == "experts" else 1)


def _values(members: list[Parameter]) -> int:
    return sum(one.count for one in members)


def _trace_s(work: Work) -> float:
    return rates.TRACE_OTHERS_S + rates.TRACE_BLOCK_S * work.config.vision.num_layers
