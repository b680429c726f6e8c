"""Names that graphs, manifest and engines share: tensors, ops, graphs, files.

Shape letters: B slots, S tokens now, T tokens in the cache, P patches, M image tokens, H heads,
D head size, C width, E experts, K experts per token, R latent rank, V vocabulary.
"""

from collections.abc import Sequence

_CARDS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
TARGETS = ("cpu", *(f"rtx:{card}" for card in _CARDS), "trt", "cuda")
"""What an artifact can be built for; several cards are joined: `rtx:sm89+sm120`."""

DOMAIN = "kimivl"
"""ONNX domain of the neutral ops; each has a function body in standard ops."""

ROUTER = "Router"
EXPERTS_UP = "ExpertsUp"
EXPERTS_DOWN = "ExpertsDown"
LATENT_ATTENTION = "LatentAttention"

MICROSOFT = "com.microsoft"
"""ONNX domain of ONNX Runtime's own operators."""
SKIP_NORM = "SkipSimplifiedLayerNormalization"
"""One of these: a sum, and its RMS norm."""

CPU_DOMAIN = "kimivl.cpu"
"""ONNX domain of ops that lowered graphs of target `cpu` have; each has a function body in stock
ops of ONNX Runtime, and a kernel in our library of ops, which is taken where it is registered."""

BLOCK_LINEAR = "BlockLinear"
BLOCK_EXPERTS = "BlockExperts"
CACHED_ATTENTION = "CachedAttention"
READS_LENGTHS = "cache-attention"
"""The pass that puts it into layers: our kernel of it reads no more of a slot than is in use."""

PATCHES = "patches"
ROW_WEIGHTS = "row_weights"
COLUMN_WEIGHTS = "column_weights"
MERGED = "merged"
FEATURES = "features"
HIDDEN = "hidden"
HIDDEN_OUT = "hidden_out"
CACHE = "cache"
CACHE_OUT = "cache_out"
CACHE_KEYS = "cache_keys"
CACHE_SCALES = "cache_scales"
"""Beside int8 codes in `cache`: the rotated keys, and the scales of groups of codes."""
LENGTHS = "lengths"
WINDOW = "window"
"""Input of a layer's plan of which only the length is read: rows of the cache that are in use."""
ROWS = "rows"
LOGITS = "logits"
BEST = "best"
ENERGY = "energy"
"""Beside logits where the device chooses: the id of the highest one of each row, and the sum of
the row's squares, which is finite only if all logits are."""
TAP_EXPERTS = "tap_experts"
TAP_SCORES = "tap_scores"
TAP_MARGIN = "tap_margin"

VISION = "vision"
PROJECTOR = "projector"
HEAD = "head"
EMBEDDING = "embedding"
DECODER = "decoder"
"""All layers and the head as one graph, beside the others, where a target runs them at once."""

_BLOCKS, _JOINT = ".blocks", "+"


def output_of(cache_tensor: str) -> str:
    """Name the output of a layer that is the new state of one of its cache tensors."""
    return f"{cache_tensor}_out"


def blocks_name(parameter: str) -> str:
    """Name a parameter's codes in the blocks that `BlockLinear` and `BlockExperts` read.

    Of parameters whose rows are interleaved it is the first one's name: gate and up of experts.
    """
    return f"{parameter}{_BLOCKS}"


def block_scales_name(parameter: str) -> str:
    """Name the scales of those blocks."""
    return f"{parameter}.block_scales"


def joint_name(parameters: Sequence[str]) -> str:
    """Name one matrix in which the outputs of several lie."""
    return _JOINT.join(parameters)


def parameters_in_blocks(blocks: str) -> list[str]:
    """Tell whose codes lie in blocks of some name; nobody's if it is not one of blocks."""
    return blocks.removesuffix(_BLOCKS).split(_JOINT) if blocks.endswith(_BLOCKS) else []


def place_name(place: int, name: str) -> str:
    """Name what belongs to one layer of a chain: several layers that one plan runs."""
    return f"{place}.{name}"


def layer_name(layer: int) -> str:
    """Name the graph of one decoder layer, so that names sort in order."""
    return f"layer_{layer:02d}"
