"""What target `cpu` takes: build, verify, memory while it runs, time of requests.

Arithmetic on sizes, with what was measured. A recipe that lets activations be rounded runs in three
ways: kernels of ours with codes copied (`packed`) or read where their files are mapped (`mapped`),
and ONNX Runtime's own kernels (`stock`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from export.recipe.sizes import Parameter, stored_bytes
from runtime import names
from runtime.config import DecoderConfig

from .. import rates
from ..costs import START_S, TORCH_BYTES, Speed, StageCost
from ..work import Work
from .kept import Form, block_bytes, form_of, kept_bytes, read_share, runs_all_experts, stock_bytes

RUNTIME_BYTES = 70_000_000
"""A process with ONNX Runtime loaded and the sessions' graphs; seen: 0.06 to 0.08 GB."""
FILL_COPIES = 2
"""Of the largest stack of codes, in fp32, while a module is filled with what they mean; seen: 2."""
FOLD_FACTOR = 3.5
"""What ONNX Runtime holds while it turns the codes of a layer's experts into fp32, times those
experts in fp32; seen: 3.1 at load, 3.7 in verify."""
WIDEN_FP4_FACTOR = 3.5
"""Bytes for a value while FP4 codes become int8; counted in the code, not measured."""
SCORE_FACTOR = 4.5
"""Scores of a prompt's step, (chunk, heads, tokens) in fp32, held at a time; seen: 4.5."""
TOKEN_FACTOR = 1.5
"""Numbers of a prompt's token in queries and experts, held at a time by our kernels; seen: 1.5."""
PATCH_FACTOR = 25
"""Numbers of the tower's width for a patch at the peak; seen: 25 for 1024 and 4096 patches."""
BUILD_GRAPH_S = 0.6
"""The passes over a graph; seen: 3.2 s for five."""

Way = Literal["packed", "mapped", "stock"]
_MADE_OF = {
    "packed": "codes in large pages",
    "mapped": "what is not codes",
    "stock": "codes as ONNX Runtime packs them",
}


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Weights in memory."""

    codes: int
    """Bytes that stay codes or as they are stored, in memory of the process's own."""
    wide: int
    """Bytes that are made in fp32 when a graph is loaded."""
    mapped: int
    """Bytes that are read where the file is mapped."""

    @property
    def own(self) -> int:
        """Anonymous memory."""
        return self.codes + self.wide


def cpu_costs(work: Work, cache_bytes: int) -> list[StageCost]:
    """Estimate the stages of target `cpu` behind the neutral artifact.

    Args:
        work: the model.
        cache_bytes: of all slots.
    """
    return [_build(work), _verify(work), *(_run(work, cache_bytes, way) for way in ways(work))]


def cpu_speeds(work: Work, cache_token_bytes: int) -> list[Speed]:
    """Estimate requests on target `cpu`: with our kernels where they run, and without.

    Args:
        work: the model.
        cache_token_bytes: of one token in all layers.
    """
    stock = _speed(work, cache_token_bytes, "stock")
    has_kernels = "packed" in ways(work)
    return [_speed(work, cache_token_bytes, "packed"), stock] if has_kernels else [stock]


def ways(work: Work) -> tuple[Way, ...]:
    """Tell how a recipe can run: our kernels are for graphs that round by themselves."""
    members = [one for graph in work.graphs.values() for one in graph]
    has_codes = any(form_of(work, one) is Form.BLOCKS for one in members)
    is_rounded = has_codes and work.recipe.may_round_activations
    return ("packed", "mapped", "stock") if is_rounded else ("stock",)


def _build(work: Work) -> StageCost:
    """New weights: codes in blocks, other experts in the operator's order, FP4 as int8."""
    members = [one for graph in work.graphs.values() for one in graph]
    fp4 = [one for one in members if work.codes_of(one) == "nvfp4"]
    blocks = [one for one in members if form_of(work, one) is Form.BLOCKS]
    moved = [one for one in members if one.part == "experts" and work.codes_of(one) is None]
    left = sum(stored_bytes(one, work.recipe).codes for one in moved)
    left += sum(block_bytes(work, one) for one in blocks) + sum(one.count + 4 for one in fp4)
    largest = max((one.count for one in fp4), default=0)
    return StageCost(
        stage="build",
        memory_bytes=TORCH_BYTES + int(WIDEN_FP4_FACTOR * largest),
        memory_of="the largest FP4 stack as int8" if fp4 else "one expert",
        disk_bytes=left,
        left_bytes=left,
        time_s=START_S
        + rates.RELAY.time_s(_values([*moved, *fp4]))
        + rates.LAY_OUT.time_s(_values(blocks))
        + BUILD_GRAPH_S * len(work.graphs),
    )


def _verify(work: Work) -> StageCost:
    """Each graph as module and as session, on ONNX Runtime's own kernels."""
    peaks = {graph: _verify_bytes(work, members) for graph, members in work.graphs.items()}
    graph = max(peaks, key=lambda name: peaks[name])
    of_graphs = [one for members in work.graphs.values() for one in members]
    folded = _folded(work, of_graphs)
    files = work.weights_bytes + _build(work).left_bytes
    return StageCost(
        stage="verify",
        memory_bytes=TORCH_BYTES + int(peaks[graph]),
        memory_of=f"{graph} as module and as session, what filling or loading it takes",
        disk_bytes=0,
        left_bytes=0,
        time_s=START_S
        + rates.HASH.time_s(files)
        + rates.VERIFY.time_s(_values(of_graphs) - _values(folded))
        + rates.VERIFY_CODES.time_s(_values(folded)),
    )


def _verify_bytes(work: Work, members: Sequence[Parameter]) -> float:
    """The module, and beside it codes on their way to numbers, or the session and its loading."""
    codes = max((one.count for one in members if work.codes_of(one)), default=0)
    session = _kept(work, members, "stock").own + _loading_bytes(work, members)
    return 4 * _values(members) + max(4 * FILL_COPIES * codes, session)


def _run(work: Work, cache_bytes: int, way: Way) -> StageCost:
    """All sessions, one loaded after the other; then the cache and a step."""
    own = mapped = 0
    loading, time_s = 0.0, rates.SESSION_S * len(work.graphs)
    for members in work.graphs.values():
        kept, folded = _kept(work, members, way), _folded(work, members)
        own += kept.own
        mapped += kept.mapped
        loading = max(loading, own + FOLD_FACTOR * 4 * _values(folded))
        time_s += _open_s(kept, way, is_folded=work.recipe.is_quantised)
    running = own + cache_bytes + _step_bytes(work, way)
    besides = "the cache, one step" if running > loading else "what loading the experts takes"
    several = len(ways(work)) > 1
    return StageCost(
        stage=f"run/{way}" if several else "run",
        memory_bytes=RUNTIME_BYTES + int(max(loading, running)),
        memory_of=f"{_MADE_OF[way] if several else _made_of(work)}; {besides}",
        mapped_bytes=mapped + _table_bytes(work),
        disk_bytes=0,
        left_bytes=0,
        time_s=time_s,
    )


def _made_of(work: Work) -> str:
    members = [one for graph in work.graphs.values() for one in graph]
    forms = {form_of(work, one) for one in members}
    codes = "codes, other " if Form.BLOCKS in forms else ""
    return f"{codes}weights in fp32{', experts mapped' if Form.MAPPED in forms else ''}"


def _open_s(kept: _Kept, way: Way, *, is_folded: bool) -> float:
    """Time to load a graph."""
    wide = rates.OPEN_CODES if is_folded and way == "stock" and not kept.codes else rates.OPEN
    codes = rates.OPEN_STOCK if way == "stock" else rates.OPEN_PACKED
    return wide.time_s(kept.wide / 4) + codes.time_s(kept.codes)


def _kept(work: Work, members: Sequence[Parameter], way: Way) -> _Kept:
    size_of: Callable[[Work, Parameter], int] = stock_bytes if way == "stock" else kept_bytes
    narrow = (Form.BLOCKS,) if way == "stock" else (Form.BLOCKS, Form.STORED)
    sizes = [(form_of(work, one), size_of(work, one)) for one in members]
    codes = sum(size for form, size in sizes if form in narrow)
    mapped = sum(size for form, size in sizes if form is Form.MAPPED)
    return _Kept(
        codes=0 if way == "mapped" else codes,
        wide=sum(size for _, size in sizes) - codes - mapped,
        mapped=mapped + (codes if way == "mapped" else 0),
    )


def _folded(work: Work, members: Sequence[Parameter]) -> list[Parameter]:
    """List experts whose codes become fp32 when the graph is loaded."""
    return [
        one
        for one in members
        if one.part == "experts" and work.codes_of(one) and form_of(work, one) is Form.WIDE
    ]


def _loading_bytes(work: Work, members: Sequence[Parameter]) -> float:
    """What is held beside module and session while a graph is verified."""
    folded = 4 * _values(_folded(work, members))
    if folded:
        return FOLD_FACTOR * folded
    wide = [one for one in members if form_of(work, one) is not Form.BLOCKS]
    experts = 4 * _values([one for one in wide if one.part == "experts"])
    largest = max((one.count for one in wide), default=0)
    return max(4 * largest, experts * 2 / 3)  # gate and up are joined


def _step_bytes(work: Work, way: Way) -> int:
    """The larger of an image's values and a prompt step's."""
    decoder, limits = work.config.decoder, work.limits
    image = 4 * PATCH_FACTOR * work.config.vision.width * limits.max_patches
    step = 4 * TOKEN_FACTOR * limits.prefill_chunk * _token_values(decoder)
    if way == "stock" or work.recipe.cache is None:  # our attention is over an int8 cache
        scores = 4 * limits.prefill_chunk * decoder.num_heads * limits.max_tokens
        step = max(step, SCORE_FACTOR * scores)
    if runs_all_experts(work):  # values of every expert for every token
        values = 3 * decoder.expert_width + decoder.width
        step = max(step, 4 * limits.prefill_chunk * decoder.num_experts * values)
    return int(max(image, step))


def _token_values(decoder: DecoderConfig) -> int:
    """Numbers of a token: queries, absorbed and mixed; of its experts both halves."""
    of_head = decoder.nope_size + 2 * decoder.latent_width
    of_expert = 3 * decoder.expert_width + decoder.width
    return decoder.num_heads * of_head + decoder.experts_per_token * of_expert


def _speed(work: Work, cache_token_bytes: int, way: Way) -> Speed:
    vision, patches = work.config.vision, work.limits.max_patches
    pictures = [*work.graphs[names.VISION], *work.graphs[names.PROJECTOR]]
    encoded = 2 * patches * _values(pictures) + 4 * patches**2 * vision.width * vision.num_layers
    layers = [one for name in work.layer_graphs for one in work.graphs[name]]
    decoded = [*layers, *work.graphs[names.HEAD]]
    flops = 2 * sum(one.count * read_share(work, one) for one in layers)
    size_of = stock_bytes if way == "stock" else kept_bytes
    token_bytes = int(sum(size_of(work, one) * read_share(work, one) for one in decoded))
    found = _rates(work, way)
    token_s = found.weights.time_s(token_bytes)
    cache_s = found.cache.time_s(cache_token_bytes * work.limits.max_tokens)
    return Speed(
        kernels="own" if way != "stock" else "stock",
        conditions=found.conditions,
        largest_image_s=found.image.time_s(encoded),
        prompt_tokens_per_s=1 / found.prompt.time_s(flops),
        new_tokens_per_s=1 / token_s,
        last_tokens_per_s=1 / (token_s + cache_s),
        token_bytes=token_bytes,
    )


def _rates(work: Work, way: Way) -> rates.RequestRates:
    """Choose what was measured on what is nearest: codes or fp32 for most of a token's bytes."""
    mlp = (one for name in work.layer_graphs for one in work.graphs[name])
    forms = {form_of(work, one) for one in mlp if one.part in ("experts", "dense_mlp")}
    if way != "stock":
        found = rates.PACKED
    elif Form.BLOCKS in forms:
        found = rates.STOCK
    else:
        found = rates.IN_FP32
    if work.recipe.cache is None:
        return replace(found, cache=rates.READ_CACHE)
    return found if way != "stock" else replace(found, cache=rates.READ_STOCK_CACHE)


def _table_bytes(work: Work) -> int:
    """The embedding table, of which rows are read where the file is mapped."""
    table = [one for one in work.parameters if one.part == "embedding"]
    return sum(stored_bytes(one, work.recipe).codes for one in table)


def _values(members: Sequence[Parameter]) -> int:
    return sum(one.count for one in members)
