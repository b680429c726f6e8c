"""What a build is asked for: sizes, and how TensorRT's plans are made."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

from runtime.config import KimiVLConfig
from runtime.errors import CapacityError, InputError, describe_problems
from runtime.limits import Limits
from runtime.prompt.patches import ImageRule, max_patches

DEFAULT_MAX_TOKENS = 8192
DEFAULT_PREFILL_CHUNK = 512
MAX_CACHE_BYTES = 10**12
"""No machine that this is made for gives a cache more."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How plans are made; only for targets of TensorRT."""

    weights: Literal["external", "embedded"] = "external"
    """`external`: a plan is code, and serves all layers of a kind; `embedded`: it holds weights."""
    layers_per_engine: int = 1
    """The most layers of a kind that one plan runs behind each other; with external weights."""
    use_plugins: bool = True
    """Whether experts run in our own kernels."""
    use_quick_plugins: bool = False
    """Whether TensorRT itself keeps their code, so that plans need no classes of ours; only with
    target `trt` and external weights."""
    min_precision: float = 0.95
    """The least share of the arithmetic that is done as the recipe says."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The sizes to build for; None means what the target was built for before, or a default."""

    max_tokens: int | None = None
    max_input_tokens: int | None = None
    max_slots: int | None = None
    max_image_tokens: int | None = None
    prefill_chunk: int | None = None
    plans: PlanOptions = field(default_factory=PlanOptions)

    def limits(self, config: KimiVLConfig, rule: ImageRule, former: Limits | None = None) -> Limits:
        """Turn the sizes into limits.

        Args:
            config: of the model.
            rule: of its images.
            former: what the target was built for before, if it was; what is left out stays so. A
                prompt that could fill the cache still can.

        Raises:
            InputError: sizes are not positive, contradict each other, or are larger than the model
                allows; all such are listed.
        """
        positions, largest = config.decoder.max_positions, max_patches(rule)
        kept = former or _usual_limits(positions, largest)
        max_tokens = _given_or(self.max_tokens, min(kept.max_tokens, positions))
        prompt, chunk = kept.max_input_tokens, kept.prefill_chunk
        if prompt >= kept.max_tokens:
            prompt = max_tokens
        if chunk >= kept.max_tokens:  # the cache has cut it down
            chunk = max(chunk, DEFAULT_PREFILL_CHUNK)
        image_tokens, patches = self.max_image_tokens, min(kept.max_patches, largest)
        limits = Limits(
            max_tokens=max_tokens,
            max_input_tokens=_given_or(self.max_input_tokens, min(prompt, max_tokens)),
            max_slots=_given_or(self.max_slots, kept.max_slots),
            max_patches=patches if image_tokens is None else 4 * image_tokens,
            prefill_chunk=_given_or(self.prefill_chunk, min(chunk, max_tokens)),
        )
        problems = list(_problems(limits, positions, largest))
        if problems:
            raise InputError(describe_problems("limits", problems))
        return limits


def check_cache(limits: Limits, token_bytes: int) -> None:
    """Refuse a cache that no machine can hold, before anything slow.

    Args:
        limits: its slots and their capacity.
        token_bytes: of one token in all layers.

    Raises:
        CapacityError: it is too large.
    """
    size_bytes = limits.max_slots * limits.max_tokens * token_bytes
    if size_bytes > MAX_CACHE_BYTES:
        raise CapacityError(
            f"a cache of {limits.max_slots} x {limits.max_tokens} tokens needs "
            f"{size_bytes / 1e9:,.1f} GB, and more than {MAX_CACHE_BYTES / 1e9:,.0f} GB are not "
            "built for; lower --max-batch-size or --max-kv-cache-capacity"
        )


def _usual_limits(positions: int, largest: int) -> Limits:
    """Limits of a target that is built for the first time."""
    max_tokens = min(DEFAULT_MAX_TOKENS, positions)
    return Limits(
        max_tokens=max_tokens,
        max_input_tokens=max_tokens,
        max_slots=1,
        max_patches=largest,
        prefill_chunk=min(DEFAULT_PREFILL_CHUNK, max_tokens),
    )


def _problems(limits: Limits, positions: int, largest: int) -> Iterator[str]:
    wrong = [name for name, value in asdict(limits).items() if value < 1]
    if wrong:
        yield f"{', '.join(wrong)} must be at least 1"
        return
    max_tokens = limits.max_tokens
    if max_tokens < 2:
        yield "a cache of 1 token holds no prompt with an answer; give 2 or more"
    if max_tokens > positions:
        yield (
            f"a cache of {max_tokens} tokens: the model was made for at most {positions}; "
            f"use --max-kv-cache-capacity {positions}"
        )
    if limits.max_input_tokens > max_tokens:
        yield (
            f"a prompt of {limits.max_input_tokens} tokens does not fit a cache of {max_tokens}; "
            "raise --max-kv-cache-capacity or lower --max-input-len"
        )
    if limits.prefill_chunk > max_tokens:
        yield (
            f"a chunk of {limits.prefill_chunk} tokens does not fit a cache of {max_tokens}; "
            f"use --prefill-chunk {max_tokens} or less"
        )
    if limits.max_patches > largest:
        yield (
            f"an image of {limits.max_patches // 4} tokens: the checkpoint's rule gives at most "
            f"{largest // 4}; use --max-image-tokens {largest // 4} or less"
        )


def _given_or(value: int | None, default: int) -> int:
    return default if value is None else value
