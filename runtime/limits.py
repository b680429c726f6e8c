"""What an artifact is built for: sizes that no request may exceed."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Static sizes of the cache and the largest inputs; tokens, slots and patches are counts."""

    max_tokens: int
    """Capacity of one slot: prompt and answer together."""
    max_input_tokens: int
    """Longest prompt."""
    max_slots: int
    """Sequences that live in the cache at the same time."""
    max_patches: int
    """Patches of the largest image after resizing and padding."""
    prefill_chunk: int
    """Tokens of a prompt that go through the decoder in one step."""
