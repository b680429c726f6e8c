"""What target `cuda` takes: its build, and the memory of the GPU.

Arithmetic on sizes. The build is measured as part of target `cpu`'s, whose files it writes alike;
nothing was run on a GPU, so that scratch is counted in the graph, or seen in what ONNX Runtime asks
stand-ins for CUDA's libraries for. Estimated are what it makes of weights when it loads them,
scores of attention and the largest image; left out are what else a step holds, smaller than these,
and what CUDA itself takes.
"""

from export.recipe.sizes import BASE_BYTES, Parameter, recipe_of, stored_bytes

from .. import rates
from ..costs import START_S, TORCH_BYTES, StageCost
from ..device_memory import DeviceMemory
from ..passes.block_size import common_block_size
from ..work import Work
from .expert_sizes import takes_shared, takes_sizes

JOIN_S = 0.1
"""Of a graph of the decoder in the joined one."""
GRAPH_S = 0.6
"""The passes over a graph; seen: 3.2 s for five of target `cpu`."""
SCORE_COPIES = 3
"""Scores of a step in the base type, (tokens, heads, cached tokens), held at a time; counted."""
PATCH_BYTES = 130
"""What the tower's session holds for a patch and channel of the largest image; seen over stand-ins,
with 144 channels: 112 in 16 bits, 129 in fp32, no scores among them."""
MAX_ROWS = 64
"""Rows of logits that the engine keeps room for, or its slots if there are more."""


def build_cost(work: Work) -> StageCost:
    """Estimate `build`: codes in blocks, other experts in the operator's order."""
    members = [one for graph in work.graphs.values() for one in graph]
    blocks = [one for one in members if _is_in_blocks(work, one)]
    moved = [one for one in members if one.part == "experts" and work.codes_of(one) is None]
    left = sum(stored_bytes(one, work.recipe).codes for one in moved)
    left += sum(_block_bytes(work, one) for one in blocks)
    return StageCost(
        stage="build",
        memory_bytes=TORCH_BYTES,
        memory_of="one expert",
        disk_bytes=left,
        left_bytes=left,
        time_s=START_S
        + rates.RELAY.time_s(sum(one.count for one in moved))
        + rates.LAY_OUT.time_s(sum(one.count for one in blocks))
        + GRAPH_S * len(work.graphs)
        + JOIN_S * len(work.layers),
    )


def device_memory(work: Work, cache_bytes: int) -> DeviceMemory:
    """Estimate what `run` needs of the GPU.

    Args:
        work: the model.
        cache_bytes: of all slots.
    """
    members = [one for graph in work.graphs.values() for one in graph]
    decoder, limits = work.config.decoder, work.limits
    tokens = max(limits.prefill_chunk, limits.max_slots)
    base = BASE_BYTES[work.recipe.base]
    scores = SCORE_COPIES * base * tokens * decoder.num_heads * limits.max_tokens
    # Sessions have arenas of their own, which keep what their largest step took.
    image = PATCH_BYTES * work.config.vision.width * limits.max_patches
    rows = max(limits.max_slots, min(limits.prefill_chunk, MAX_ROWS))
    hidden = base * limits.max_slots * limits.prefill_chunk * decoder.width
    return DeviceMemory(
        weights_bytes=sum(_kept_bytes(work, one) for one in members),
        cache_bytes=cache_bytes,
        scratch_bytes=scores + image,
        scratch_of="scores of attention, the largest image",
        buffers_bytes=hidden + 4 * rows * decoder.vocab_size,
        code_bytes=0,
    )


def _kept_bytes(work: Work, parameter: Parameter) -> int:
    """Count what lies on the card for a parameter once its graph is loaded."""
    is_of_experts = parameter.part == "experts"
    if _is_in_blocks(work, parameter):
        kept = _block_bytes(work, parameter)
        # `QMoE` keeps its codes as they came beside those that it has laid out for its kernel.
        is_twice = is_of_experts or _is_among_experts(work, parameter)
        return kept + _code_bytes(work, parameter) if is_twice else kept
    if is_of_experts and work.codes_of(parameter) is not None:
        return BASE_BYTES[work.recipe.base] * parameter.count  # folded: `MoE` takes no codes
    stored = stored_bytes(parameter, work.recipe)
    return stored.codes + stored.scales


def _is_in_blocks(work: Work, parameter: Parameter) -> bool:
    """Whether an operator reads the codes of a parameter, laid out anew."""
    if work.codes_of(parameter) not in ("int4", "int8") or _block(work, parameter) == 0:
        return False
    decoder = work.config.decoder
    fits = work.recipe.base != "fp32" and takes_sizes([decoder.width, decoder.expert_width])
    return fits or parameter.part != "experts"


def _is_among_experts(work: Work, parameter: Parameter) -> bool:
    """Whether a matrix of the shared experts is cut into experts of the routed ones' `QMoE`."""
    decoder, routed = work.config.decoder, work.experts
    shared = recipe_of(parameter, work.recipe)
    if parameter.part != "shared_experts" or routed is None or shared is None:
        return False
    sizes = [decoder.width, decoder.expert_width]
    groups = [routed.weights.group, shared.weights.group]
    block = common_block_size(sizes, groups[:1])
    return (
        decoder.normalize_scores
        and work.recipe.base != "fp32"
        and routed.weights.codes == shared.weights.codes
        and takes_sizes(sizes)
        and block == common_block_size([*sizes, decoder.shared_width], groups)
        and takes_shared(
            by_token=decoder.experts_per_token,
            experts=decoder.num_experts,
            shared=decoder.num_shared_experts,
        )
    )


def _block_bytes(work: Work, parameter: Parameter) -> int:
    """Count codes, and a scale for each block."""
    scales = parameter.count // _block(work, parameter)
    return _code_bytes(work, parameter) + BASE_BYTES[work.recipe.base] * scales


def _code_bytes(work: Work, parameter: Parameter) -> int:
    return parameter.count * (4 if work.codes_of(parameter) == "int4" else 8) // 8


def _block(work: Work, parameter: Parameter) -> int:
    """Inputs that share a scale; 0 where a matrix does not fill its blocks."""
    block = work.block_of(parameter)
    return block if block and parameter.inputs % block == 0 else 0
