"""What a target of TensorRT takes: its build, the device's memory, the forms of the experts.

Arithmetic on sizes, with what `benchmarks/plans.json` measured: graphs of the released sizes built
with TensorRT-RTX 1.7 on two cores that other work shared. Memory is anonymous memory at the peak.
Nothing was run on a GPU: scratch is what the builder says that a plan will reserve there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from export.recipe.sizes import BASE_BYTES, Parameter, graph_bytes, stored_bytes
from runtime import names

from ..costs import START_S, StageCost
from ..device_memory import DeviceMemory
from ..work import Work
from .forms import experts_form
from .passes.conditional_experts import GATHERED
from .passes.expert_costs import ExpertStack
from .passes.options import ExpertsForm
from .profiles import vision_bands
from .shapes import BAND_WASTE

PROCESS_BYTES = 280_000_000
"""A process that has built the plan of a decoder layer; seen: 0.25 to 0.34 GB."""
BLOCK_BYTES = 14_500_000
"""Of a block of the tower, all of which are one graph; seen: 0.65 to 0.70 GB for 27 blocks."""
EMBEDDED_FACTOR = 1.15
"""Weights on their way into a plan, times their size; seen: 1.03 to 1.31."""

LAYER_CODE_BYTES = 7_000_000
"""A decoder layer's plan without weights; seen: 4.7 to 8.6 MB."""
FP4_CODE_BYTES = 15_000_000
"""The same with NVFP4; seen: 12 to 18 MB."""
BLOCK_CODE_BYTES = 1_700_000
"""Of a block of the tower in its plan; seen: 33 to 67 MB for 27 blocks."""
OTHER_CODE_BYTES = 1_000_000
"""Projector's or head's plan without weights; seen: 0.5 to 2 MB."""

KERNELS_S = 5.0
"""Compiling our kernels for one GPU, once for all layers; seen: 3 to 8 s."""
GRAPH_S = 0.2
"""Lowering a graph and finding graphs of its kind."""
PLAN_S = 2.0
"""Building a plan but for the tower's; seen: 0.1 to 2.7 s."""
BLOCK_S = 1.0
"""Of a block of the tower; seen: 22 to 40 s for 27 blocks."""
EMBEDDED_BYTES_PER_S = 80e6
"""Weights that go into plans; seen: 52e6 to 140e6."""

SCORE_BYTES = 4
"""Of a score in fp32; its probability in the base type lies beside it. Seen: 6.1 in 16 bits."""
TOKEN_FACTOR = 3.5
"""Scratch of a layer for a token, times its H queries of the cache's width; seen: 3.4 to 4.1."""
PATCH_FACTOR, ROUNDED_PATCH_FACTOR = 8.8, 11.6
"""Numbers of the tower's width for a patch of a profile's largest grid; the second where weights of
the tower are quantised. Seen: just these."""
STACK_FACTOR = 1.5
"""Experts that TensorRT multiplies with, times their codes; seen: 1.2 to 1.9."""

TABLE_TOKENS = (1, 8, 64, 512)
"""Tokens of a step for which the forms of the experts are compared."""
_IN_BRANCHES = (None, "int8")
"""Codes that a branch may gather; TensorRT lets nothing narrower in."""


@dataclass(frozen=True, kw_only=True)
class ExpertsStep:
    """The routed experts of one layer, for one step in one form."""

    form: ExpertsForm
    is_chosen: bool
    """Whether the build takes this form."""
    tokens: int
    moved_bytes: int
    """Of weights, read or written."""
    multiply_adds: int


def build_costs(work: Work, sms: Sequence[int]) -> list[StageCost]:
    """Estimate `build` with weights outside of the plans, and with weights in them.

    Args:
        work: the model.
        sms: compute capabilities that are built for; none if they are not known.
    """
    return [_external(work, sms), _embedded(work, sms)]


def device_memory(work: Work, sms: Sequence[int], cache_bytes: int) -> DeviceMemory:
    """Estimate what `run` needs of the device, with weights outside of the plans.

    Args:
        work: the model.
        sms: compute capabilities that are built for; none if they are not known.
        cache_bytes: of all slots.
    """
    scratches = scratch_bytes(work, sms)
    owner = max(scratches, key=lambda graph: scratches[graph])
    sizes = graph_bytes(work.parameters, work.recipe)
    return DeviceMemory(
        weights_bytes=sum(sizes[graph] for graph in work.graphs),
        cache_bytes=cache_bytes,
        scratch_bytes=scratches[owner],
        scratch_of=owner,
        buffers_bytes=_buffers_bytes(work),
        code_bytes=sum(_code_bytes(work, graph) for graph in _kinds(work)),
    )


def scratch_bytes(work: Work, sms: Sequence[int]) -> dict[str, int]:
    """Estimate what plans reserve for their largest step, by graph: one graph of each kind.

    Left out is the projector, which never needs the most.

    Args:
        work: the model.
        sms: compute capabilities that are built for; none if they are not known.
    """
    found = {}
    for graph in _kinds(work):
        if graph == names.VISION:
            found[graph] = _tower_scratch(work)
        elif graph == names.HEAD:
            found[graph] = _head_scratch(work)
        elif _is_layer(graph):
            found[graph] = _layer_scratch(work, sms, work.graphs[graph])
    return found


def experts_steps(work: Work, sms: Sequence[int]) -> list[ExpertsStep]:
    """Compute what each form of the experts moves and multiplies; nothing if there are none.

    Args:
        work: the model.
        sms: compute capabilities that are built for; none if they are not known.
    """
    if _experts(work) == []:
        return []
    stack, chosen = expert_stack(work), experts_form(work.recipe, sms, use_plugins=True)
    forms: list[ExpertsForm] = ["gather", "dense", "conditional"]
    forms = ["plugin", *forms] if chosen == "plugin" else forms
    return [
        ExpertsStep(
            form=form,
            is_chosen=form == chosen,
            tokens=tokens,
            moved_bytes=stack.moved_bytes(_computed(form, work), tokens),
            multiply_adds=stack.flops(_computed(form, work), tokens) // 2,
        )
        for form in forms
        for tokens in TABLE_TOKENS
    ]


def expert_stack(work: Work) -> ExpertStack:
    """Give the sizes of the routed experts of one MoE layer, as they are stored."""
    decoder, members = work.config.decoder, _experts(work)
    sizes = [stored_bytes(one, work.recipe) for one in members]
    return ExpertStack(
        num_experts=decoder.num_experts,
        num_chosen=decoder.experts_per_token,
        numbers=_values(members) // decoder.num_experts,
        stored_bytes=sum(one.codes + one.scales for one in sizes) // decoder.num_experts,
        number_bytes=BASE_BYTES[work.recipe.base],
    )


def _external(work: Work, sms: Sequence[int]) -> StageCost:
    code = sum(_code_bytes(work, graph) for graph in _kinds(work))
    return StageCost(
        stage="build/external",
        memory_bytes=PROCESS_BYTES + _tower_bytes(work, names.VISION),
        memory_of="the plan of the tower; weights stay in their files",
        disk_bytes=code,
        left_bytes=code,
        time_s=_lowering_s(work, sms) + PLAN_S * len(_kinds(work)),
    )


def _embedded(work: Work, sms: Sequence[int]) -> StageCost:
    """Every graph has a plan of its own, which holds its weights."""
    sizes = graph_bytes(work.parameters, work.recipe)
    peaks = {
        graph: PROCESS_BYTES + _tower_bytes(work, graph) + EMBEDDED_FACTOR * sizes[graph]
        for graph in work.graphs
    }
    largest = max(peaks, key=lambda graph: peaks[graph])
    weights = sum(sizes[graph] for graph in work.graphs)
    left = weights + sum(_code_bytes(work, graph) for graph in work.graphs)
    return StageCost(
        stage="build/embedded",
        memory_bytes=int(peaks[largest]),
        memory_of=f"the plan of {largest} with its weights",
        disk_bytes=left,
        left_bytes=left,
        time_s=_lowering_s(work, sms) + PLAN_S * len(work.graphs) + weights / EMBEDDED_BYTES_PER_S,
    )


def _lowering_s(work: Work, sms: Sequence[int]) -> float:
    """Everything that takes as long wherever the weights are."""
    compiles = _has_kernels(work, sms) and bool(_experts(work))
    return (
        START_S
        + GRAPH_S * len(work.graphs)
        + (KERNELS_S * max(1, len(sms)) if compiles else 0)
        + BLOCK_S * work.config.vision.num_layers
    )


def _tower_bytes(work: Work, graph: str) -> int:
    return BLOCK_BYTES * work.config.vision.num_layers if graph == names.VISION else 0


def _code_bytes(work: Work, graph: str) -> int:
    """Bytes of a graph's plan beside weights."""
    if graph == names.VISION:
        return BLOCK_CODE_BYTES * work.config.vision.num_layers
    if not _is_layer(graph):
        return OTHER_CODE_BYTES
    has_fp4 = any(work.codes_of(one) == "nvfp4" for one in work.graphs[graph])
    return FP4_CODE_BYTES if has_fp4 else LAYER_CODE_BYTES


def _kinds(work: Work) -> list[str]:
    """List one graph of each kind: those that need plans of their own if these hold no weights."""
    kinds: dict[str, str] = {}
    for graph, members in work.graphs.items():
        has_experts = any(one.part == "experts" for one in members)
        kinds.setdefault(f"layer {has_experts}" if _is_layer(graph) else graph, graph)
    return list(kinds.values())


def _tower_scratch(work: Work) -> int:
    """Numbers of every patch of the largest grid that any profile holds."""
    vision = work.config.vision
    bands = vision_bands(vision, work.limits.max_patches, BAND_WASTE)
    grids = (one[names.PATCHES].max for one in bands)
    patches = max(rows * columns for rows, columns, _ in grids)
    factor = ROUNDED_PATCH_FACTOR if "vision" in work.recipe.parts else PATCH_FACTOR
    return int(factor * vision.width * patches * BASE_BYTES[work.recipe.base])


def _head_scratch(work: Work) -> int:
    """Logits in the base type, which fp32 ones are made of; next to nothing where they are fp32."""
    (matrix,) = (one for one in work.graphs[names.HEAD] if one.part == "head")
    if work.recipe.base == "fp32" and not work.codes_of(matrix):
        return 0
    return BASE_BYTES[work.recipe.base] * _max_rows(work) * work.config.decoder.vocab_size


def _layer_scratch(work: Work, sms: Sequence[int], members: Sequence[Parameter]) -> int:
    """Scores of a prompt's step, and weights that are bound as codes and multiplied as numbers."""
    decoder, limits, base = work.config.decoder, work.limits, BASE_BYTES[work.recipe.base]
    queries = limits.max_slots * limits.prefill_chunk * decoder.num_heads
    scores = (SCORE_BYTES + base) * queries * limits.max_tokens
    rows = TOKEN_FACTOR * base * queries * decoder.latent_width
    widened = [
        one
        for one in members
        if one.part not in ("experts", "kv_b") and work.codes_of(one) not in (None, "nvfp4")
    ]
    stacks = [one for one in members if one.part == "experts"]
    codes = sum(stored_bytes(one, work.recipe).codes for one in stacks)
    multiplied = 0 if _has_kernels(work, sms) else STACK_FACTOR * codes
    return int(scores + rows + base * _values(widened) + multiplied)


def _buffers_bytes(work: Work) -> int:
    """Hidden states twice, window, logits; an image's patches, rows and features."""
    decoder, vision, limits = work.config.decoder, work.config.vision, work.limits
    base = BASE_BYTES[work.recipe.base]
    hidden = 2 * base * limits.max_slots * limits.prefill_chunk * decoder.width
    logits = 4 * _max_rows(work) * decoder.vocab_size
    image = limits.max_patches * (4 * vision.patch_values + 2 * base * vision.width)
    features = base * limits.max_patches // vision.merge**2 * decoder.width
    return hidden + 4 * limits.max_tokens + logits + image + features


def _max_rows(work: Work) -> int:
    """Tokens of a step that may get logits."""
    return max(work.limits.max_slots, work.limits.prefill_chunk)


def _computed(form: ExpertsForm, work: Work) -> ExpertsForm:
    """Say what a form really is: conditional ones gather only what may be in a branch."""
    codes = work.experts.weights.codes if work.experts else None
    return (
        "dense"
        if form == "conditional" and (codes or "plain") not in GATHERED["external"]
        else form
    )


def _has_kernels(work: Work, sms: Sequence[int]) -> bool:
    return experts_form(work.recipe, sms, use_plugins=True) == "plugin"


def _experts(work: Work) -> list[Parameter]:
    """List the stacks of the first layer that has experts."""
    found = [one for one in work.parameters if one.part == "experts"]
    return [one for one in found if one.graph == found[0].graph]


def _is_layer(graph: str) -> bool:
    return graph not in (names.VISION, names.PROJECTOR, names.HEAD)


def _values(members: Sequence[Parameter]) -> int:
    return sum(one.count for one in members)
