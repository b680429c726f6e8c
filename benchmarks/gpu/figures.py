"""How samples become figures, and figures ratios."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

Speeds = dict[str, dict[str, float]]


def speeds(samples: Mapping[str, Sequence[Any]]) -> Speeds:
    """Reduce samples: tokens a second of all slots together, medians over steps and repeats."""
    decode: dict[str, float] = {}
    deep: dict[str, float] = {}
    prompt: dict[str, float] = {}
    for name, repeats in samples.items():
        kind, _, rest = name.partition("_")
        if kind == "prompt":
            prompt[f"tokens_{rest}"] = round(int(rest) / median(repeats), 3)
        elif kind == "decode":
            batch, depth = int(name.split("_")[2]), int(name.split("_")[4])
            speed = batch / median(step for steps in repeats for step in steps)
            (deep if depth else decode)[f"batch_{batch}" + f"_depth_{depth}" * bool(depth)] = round(
                speed, 3
            )
    return {
        "decode_tokens_per_s": decode,
        "decode_behind_tokens_per_s": deep,
        "prompt_tokens_per_s": prompt,
    }


def image_seconds(samples: Mapping[str, Sequence[Any]]) -> Speeds:
    """Reduce samples of images to the median of each of their times, in seconds."""
    return {
        name: {kind: round(median(one[kind] for one in repeats), 6) for kind in repeats[0]}
        for name, repeats in samples.items()
        if name.startswith("image_")
    }


def ratios(
    ours: Mapping[str, Mapping[str, float]], peers: Sequence[Mapping[str, Mapping[str, float]]]
) -> dict[str, float]:
    """Divide our speeds by the best peer's, for every row that a peer has; above 1 is faster."""
    found = {}
    for kind, each in ours.items():
        for name, speed in each.items():
            theirs = [one[kind][name] for one in peers if name in one.get(kind, {})]
            if theirs:
                row = kind.removesuffix("_tokens_per_s").removesuffix("_behind")
                found[f"{row}_{name}"] = round(speed / max(theirs), 3)
    return found
