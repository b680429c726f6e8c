"""What each target computes: which recipes it can take, and why not the others.

A target can take a recipe if it has every number format in it. Several targets of TensorRT-RTX can
be built for at once; then all of them have to take it.

Source: what TensorRT-RTX 1.7 compiled for each compute capability (formats, groups of INT4, types
of the cache), and its list of supported devices.
"""

from dataclasses import dataclass

from export.recipe.recipe import PartRecipe, Recipe
from runtime.errors import UnsupportedError

_NOT_RTX = {
    "rtx:sm87": "Jetson Orin",
    "rtx:sm90": "H100 and H200",
    "rtx:sm100": "B200",
    "rtx:sm103": "B300",
    "rtx:sm110": "Jetson Thor",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target."""

    name: str
    bases: tuple[str, ...]
    """Types of what is not quantised."""
    codes: tuple[str, ...]
    """Formats of weights and of activations."""
    int4_groups: tuple[int, ...]
    """Inputs that may share a scale in INT4."""
    cache: str | None = None
    """Type of what the latent cache holds but for int8 codes; None: the recipe's base type."""
    takes_int8_cache: bool = False
    remark: str = ""

    def cache_type(self, recipe: Recipe) -> str:
        """Type in which this target caches what is not int8: one of the base types."""
        return self.cache or recipe.base


def _rtx(number: int, *codes: str, remark: str = "") -> Target:
    return Target(
        name=f"rtx:sm{number}",
        bases=("fp32", "fp16", "bf16"),
        codes=("int8", "int4", *codes),
        int4_groups=(32, 64, 128),  # others were not compiled
        remark=remark,
    )


_ALL = (
    Target(
        name="cpu",
        bases=("fp32", "fp16", "bf16"),
        codes=("int8", "int4", "fp8", "nvfp4"),
        int4_groups=(16, 32, 64, 128),
        cache="fp32",
        takes_int8_cache=True,
        remark="int4 stays codes, int8 where activations may be rounded; all else is fp32",
    ),
    Target(
        name="rtx:sm75",
        bases=("fp16",),  # it refuses products in fp32
        codes=("int8",),
        int4_groups=(),
        remark="experts without our kernels",
    ),
    _rtx(80, remark="A100 is not on NVIDIA's list of devices for TensorRT-RTX"),
    _rtx(86),
    _rtx(89, "fp8"),
    _rtx(120, "fp8", "nvfp4"),
    _rtx(121, "fp8", "nvfp4"),
    Target(
        name="trt",
        bases=("fp32", "fp16", "bf16"),
        codes=("int8", "int4", "fp8", "nvfp4"),
        int4_groups=(32, 64, 128),
        remark="the GPU at hand, which may have fewer formats",
    ),
    Target(
        name="cuda",
        bases=("fp32", "fp16", "bf16"),
        codes=("int8", "int4"),
        int4_groups=(32, 64, 128),
        remark="ONNX Runtime; codes stay codes, in the base type, activations are not rounded",
    ),
)
TARGETS = {target.name: target for target in _ALL}
"""By name, in the order of tables."""


def find_target(name: str) -> Target:
    """Look a target up.

    Raises:
        UnsupportedError: there is no such target.
    """
    if name in TARGETS:
        return TARGETS[name]
    reason = f"TensorRT-RTX does not compile for {_NOT_RTX[name]}; " if name in _NOT_RTX else ""
    raise UnsupportedError(f"target {name!r}: {reason}known ones are {', '.join(TARGETS)}")


def single_targets(name: str) -> tuple[Target, ...]:
    """Look up what a target's name is made of: `rtx:sm89+sm120` is two, every other one.

    Raises:
        UnsupportedError: one of them does not exist.
    """
    home, colon, devices = name.partition(":")
    return tuple(find_target(f"{home}{colon}{device}") for device in devices.split("+"))


def refusals(target: Target, recipe: Recipe) -> list[str]:
    """Give every reason why a target cannot take a recipe, and what would work; none if it can."""
    found = []
    if recipe.base not in target.bases:
        able = ", ".join(one.name for one in _ALL if recipe.base in one.bases)
        works = f"base = {target.bases[-1]!r}"
        found.append(f"no {recipe.base}: {works} would work, or {recipe.base} on {able}")
    for codes in dict.fromkeys(one for part in recipe.parts.values() for one in _codes(part)):
        if codes not in target.codes:
            parts = ", ".join(name for name, part in recipe.parts.items() if codes in _codes(part))
            able = ", ".join(one.name for one in _ALL if codes in one.codes)
            works = " or ".join(target.codes)
            found.append(f"no {codes} ({parts}): {works} would work, or {codes} on {able}")
    for name, part in recipe.parts.items():
        group = part.weights.group
        if part.weights.codes == "int4" in target.codes and group not in target.int4_groups:
            works = ", ".join(map(str, target.int4_groups))
            found.append(f"no int4 in groups of {group} ({name}): groups of {works} would work")
    if recipe.cache is not None and not target.takes_int8_cache:
        able = ", ".join(one.name for one in _ALL if one.takes_int8_cache)
        found.append(
            f"no {recipe.cache.latent} cache: leaving parts.cache out would work ({recipe.base}), "
            f"or {recipe.cache.latent} on {able}"
        )
    return found


def _codes(part: PartRecipe) -> list[str]:
    acts = part.activations
    return [part.weights.codes, *([acts.codes] if acts else [])]
