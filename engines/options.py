"""What a build is asked for: sizes, and how TensorRT's plans are made."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from runtime.config import KimiVLConfig
from runtime.errors import InputError
from runtime.limits import Limits
from runtime.prompt.patches import ImageRule, max_patches

DEFAULT_MAX_TOKENS = 8192
DEFAULT_PREFILL_CHUNK = 512


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
    """The sizes to build for; None means a default that the checkpoint decides."""

    max_tokens: int | None = None
    max_input_tokens: int | None = None
    max_slots: int = 1
    max_image_tokens: int | None = None
    prefill_chunk: int = DEFAULT_PREFILL_CHUNK
    plans: PlanOptions = field(default_factory=PlanOptions)

    def limits(self, config: KimiVLConfig, rule: ImageRule) -> Limits:
        """Turn the sizes into limits.

        Raises:
            InputError: a size is not positive or larger than the model allows.
        """
        positions = config.decoder.max_positions
        max_tokens = _given_or(self.max_tokens, min(DEFAULT_MAX_TOKENS, positions))
        max_input_tokens = _given_or(self.max_input_tokens, max_tokens)
        image_tokens, largest = self.max_image_tokens, max_patches(rule)
        limits = Limits(
            max_tokens=max_tokens,
            max_input_tokens=max_input_tokens,
            max_slots=self.max_slots,
            max_patches=largest if image_tokens is None else min(4 * image_tokens, largest),
            prefill_chunk=min(self.prefill_chunk, max_tokens),
        )
        wrong = [name for name, value in asdict(limits).items() if value < 1]
        if wrong:
            raise InputError(f"limits: {', '.join(wrong)} must be at least 1")
        if max_tokens < 2:
            raise InputError("a cache of 1 token holds no prompt with an answer; give 2 or more")
        if max_tokens > positions:
            raise InputError(
                f"a cache of {max_tokens} tokens: the model was made for at most {positions}; "
                f"use --max-kv-cache-capacity {positions}"
            )
        if max_input_tokens > max_tokens:
            raise InputError(
                f"a prompt of {max_input_tokens} tokens does not fit a cache of {max_tokens}; "
                "raise --max-kv-cache-capacity or lower --max-input-len"
            )
        return limits


def _given_or(value: int | None, default: int) -> int:
    return default if value is None else value
