"""What target `cuda` takes: its build, and the memory of the GPU.

Arithmetic on sizes. The build is measured as part of target `cpu`'s, whose files it writes alike;
nothing was run on a GPU, so that scratch is counted in the graph and not measured.
"""

from export.recipe.sizes import BASE_BYTES, Parameter, graph_bytes, recipe_of, stored_bytes

from .. import rates
from ..costs import START_S, TORCH_BYTES, StageCost
from ..cpu.block_size import block_size, common_block_size
from ..device_memory import DeviceMemory
from ..work import Work

JOIN_S = 0.1
"""Of a graph of the decoder in the joined one."""
GRAPH_S = 0.6
"""The passes over a graph; seen: 3.2 s for five of target `cpu`."""
SCORE_COPIES = 3
"""Scores of a step in fp32, (tokens, heads, cached tokens), held at a time; counted, not seen."""
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
    sizes = graph_bytes(work.parameters, work.recipe)
    members = [one for graph in work.graphs.values() for one in graph]
    more = sum(
        _block_bytes(work, one) - _stored(work, one) for one in members if _is_in_blocks(work, one)
    )
    decoder, limits = work.config.decoder, work.limits
    tokens = max(limits.prefill_chunk, limits.max_slots)
    scores = 4 * tokens * decoder.num_heads * limits.max_tokens
    rows = max(limits.max_slots, min(limits.prefill_chunk, MAX_ROWS))
    hidden = BASE_BYTES[work.recipe.base] * limits.max_slots * limits.prefill_chunk * decoder.width
    return DeviceMemory(
        weights_bytes=sum(sizes[graph] for graph in work.graphs) + more,
        cache_bytes=cache_bytes,
        scratch_bytes=SCORE_COPIES * scores,
        scratch_of="scores of attention",
        buffers_bytes=hidden + 4 * rows * decoder.vocab_size,
        code_bytes=0,
    )


def _is_in_blocks(work: Work, parameter: Parameter) -> bool:
    return work.codes_of(parameter) in ("int4", "int8") and _block(work, parameter) > 0


def _block_bytes(work: Work, parameter: Parameter) -> int:
    """Count codes, and a scale for each block."""
    bits = 4 if work.codes_of(parameter) == "int4" else 8
    scales = parameter.count // _block(work, parameter)
    return parameter.count * bits // 8 + BASE_BYTES[work.recipe.base] * scales


def _stored(work: Work, parameter: Parameter) -> int:
    stored = stored_bytes(parameter, work.recipe)
    return stored.codes + stored.scales


def _block(work: Work, parameter: Parameter) -> int:
    """Inputs that share a scale; 0 where a matrix does not fill its blocks."""
    part = recipe_of(parameter, work.recipe)
    group = None if part is None else part.weights.group
    if parameter.part == "experts":
        decoder = work.config.decoder
        return common_block_size([decoder.width, decoder.expert_width], [group]) or 0
    block = block_size(parameter.inputs, group)
    return block if parameter.inputs % block == 0 else 0
