"""The names of TensorRT targets: `trt`, `rtx:sm89`, `rtx:sm89+sm120`; and what an SM computes in.

An SM is written as its compute capability without the point: 89 is 8.9, 120 is 12.0.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from runtime.errors import UnsupportedError, describe_problems

from ..targets import TARGETS, find_target

HomeName = Literal["rtx", "trt"]

FIRST_SM = {"bf16": 80, "fp8": 89, "fp4": 100}
"""The first SM with arithmetic in a type; fp32, fp16, int8 and int4 are everywhere.

Source: what TensorRT-RTX 1.7 compiled and refused; of its targets, SM120 is the first with FP4.
"""

_PREFIX = "rtx:"


class Capability(NamedTuple):
    """A compute capability."""

    major: int
    minor: int


@dataclass(frozen=True, kw_only=True)
class BuildTarget:
    """Which TensorRT builds, and for which GPUs."""

    home: HomeName
    sms: tuple[int, ...]
    """In rising order; empty with `trt`, which builds for the GPU at hand."""

    @property
    def name(self) -> str:
        """The target's name, the same for every order that the SMs were given in."""
        return "trt" if self.home == "trt" else _PREFIX + "+".join(f"sm{sm}" for sm in self.sms)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the single targets that this one is made of, as in `engines.targets`."""
        return tuple(f"{_PREFIX}sm{sm}" for sm in self.sms)

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What the builder is told to compile for."""
        return tuple(Capability(*divmod(sm, 10)) for sm in self.sms)


def parse_target(name: str) -> BuildTarget:
    """Read a target's name.

    Raises:
        UnsupportedError: an SM is unknown, not offered or named twice; all such are listed.
    """
    if name == "trt":
        return BuildTarget(home="trt", sms=())
    if not name.startswith(_PREFIX):
        known = ", ".join(one for one in TARGETS if one.startswith(_PREFIX))
        raise UnsupportedError(
            f"target {name!r} is not one of TensorRT: those are trt, {known}, and several joined "
            "like rtx:sm89+sm120"
        )
    words = name.removeprefix(_PREFIX).split("+")
    problems = [problem for word in dict.fromkeys(words) for problem in _problems(word)]
    twice = [word for word in dict.fromkeys(words) if words.count(word) > 1]
    problems += [f"{word} is named twice" for word in twice]
    if problems:
        raise UnsupportedError(describe_problems(f"target {name!r}", problems))
    return BuildTarget(
        home="rtx", sms=tuple(sorted(int(word.removeprefix("sm")) for word in words))
    )


def sms_without(sms: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    """List those SMs that have no arithmetic in a type such as `fp8`."""
    return tuple(sm for sm in sms if sm < FIRST_SM.get(dtype, 0))


def _problems(word: str) -> list[str]:
    try:
        find_target(_PREFIX + word)
    except UnsupportedError as error:
        return [str(error).removeprefix("target ")]
    return []
