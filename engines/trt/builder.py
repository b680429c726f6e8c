"""A network and its profiles become a plan: checked before, written as a whole, hashed, described.

The same network, profiles, target and TensorRT give the same bytes, but for attention with several
free sizes: TensorRT-RTX 1.7 numbers those in no fixed order, so a few bytes may differ.

Does not know: which plans an artifact has, or whether one can be used again.
"""

import re
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import onnx

from runtime.errors import UnsupportedError, describe_problems
from runtime.files import replacing
from runtime.progress import Progress, silent

from .callbacks import BuildState, make_monitor, make_writer, noting_interrupts
from .facts import Facts, Layer, Tensor
from .home import Message
from .network import ParsedNetwork, shorten, unread_problems
from .profiles import ShapeRange, Shapes
from .sm import FIRST_SM, BuildTarget, sms_without

if TYPE_CHECKING:
    from polygraphy.backend.trt import Profile

STAGE = "build"

_HINTS = (
    (
        re.compile(r"HW-specific datatypes"),
        "choose a recipe without these types, or targets that have them",
    ),
    (
        re.compile(r"Attention operation was not supported by a dedicated kernel"),
        "write the attention as products and a softmax",
    ),
    (
        re.compile(r"producer is not shape_call"),
        "more than one layer with a Loop: build them as plans of their own",
    ),
    (re.compile(r"Cannot decompose operation moe"), "only SM100 and SM110 have MoE layers"),
    (re.compile(r"[Oo]ut of memory|bad_alloc"), "end other programs, or lower the limits"),
)
"""What helps against complaints of the builder; the first that fits is shown."""

_UNUSED = re.compile(r"Unused Input: (\S+)")
_MEMORY = re.compile(r"(Weights|Activation) Memory: (\d+) bytes")


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A plan on disk and how it came about."""

    path: Path
    size_bytes: int
    sha256: str
    target: str
    built_with: str
    """Product and version."""
    build_s: float
    peak_rss_bytes: int
    """Largest memory of this process up to now, what came before the build included."""
    weights_bytes: int
    """In the plan, as TensorRT counts them."""
    activation_bytes: int
    """Reserved at run time for the largest shapes of the profiles."""
    num_profiles: int
    num_layers: int
    decomposed: tuple[str, ...]
    """Nodes whose attention is not one fused kernel."""
    warnings: tuple[str, ...]


def build_plan(
    parsed: ParsedNetwork,
    target: BuildTarget,
    profiles: Sequence[Shapes],
    path: Path,
    progress: Progress = silent,
) -> BuiltPlan:
    """Build a plan and write it as a whole.

    Args:
        parsed: the network, of the target's home.
        target: what to build for.
        profiles: for inputs with free sizes; none if there are no such inputs.
        path: where the plan goes.
        progress: told in thousandths of the build.

    Raises:
        UnsupportedError: the target lacks a type, a profile does not fit, TensorRT does not build
            the network or leaves an input out; says which nodes and what would work.
        CapacityError: the disk is full.
    """
    problems = [*missing_types(parsed.facts, target), *misfits(parsed.facts, profiles)]
    if problems:
        raise UnsupportedError(describe_problems(_where(parsed, target), problems))
    started = time.perf_counter()
    with replacing(path) as file, parsed.home.collecting() as messages:
        state = _write_plan(parsed, target, profiles, file, progress)
        if not state.size_bytes:
            problems = list(explain_failure(parsed.facts, messages))
            raise UnsupportedError(describe_problems(_where(parsed, target), problems))
        problems = list(_left_out(parsed, messages))
        if problems:
            raise UnsupportedError(describe_problems(_where(parsed, target), problems))
    memory, said = _memory(messages), (*parsed.messages, *messages)
    return BuiltPlan(
        path=path,
        size_bytes=state.size_bytes,
        sha256=state.digest.hexdigest(),
        target=target.name,
        built_with=parsed.home.title,
        build_s=time.perf_counter() - started,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        weights_bytes=memory["Weights"],
        activation_bytes=memory["Activation"],
        num_profiles=len(profiles),
        num_layers=len(parsed.facts.layers),
        decomposed=parsed.decomposed,
        warnings=tuple(one.text for one in said if one.severity == "WARNING"),
    )


def missing_types(facts: Facts, target: BuildTarget) -> Iterator[str]:
    """Name the types that a target has no arithmetic for, with the nodes that use them.

    Without this, a builder that is told no target builds anything, and one that is names no node.
    """
    for dtype, first in FIRST_SM.items():
        lacking = sms_without(target.sms, dtype)
        users = dict.fromkeys(layer.node for layer in facts.layers if _uses(layer, dtype))
        if lacking and users:
            able = [f"sm{sm}" for sm in target.sms if sm not in lacking] or [f"sm{first} and newer"]
            yield (
                f"{dtype} (node {_listed(list(users))}) is not there on "
                f"{', '.join(f'sm{sm}' for sm in lacking)}, but on {', '.join(able)}: "
                "choose another target or another recipe"
            )


def misfits(facts: Facts, profiles: Sequence[Shapes]) -> Iterator[str]:
    """Say where profiles and the network's inputs do not fit together.

    Polygraphy would quietly give an input that a profile leaves out the size 1.
    """
    free = [tensor for tensor in facts.inputs if -1 in tensor.shape]
    if free and not profiles:
        yield f"no profile, and inputs with free sizes: {', '.join(one.name for one in free)}"
    known = {tensor.name: tensor for tensor in facts.inputs}
    for number, shapes in enumerate(profiles):
        for tensor in free:
            if tensor.name not in shapes:
                yield f"profile {number} has no shapes for input {tensor.name} {tensor.shape}"
        for name, shape in shapes.items():
            if name not in known:
                yield f"profile {number}: there is no input {name}; {', '.join(known)} are there"
            elif not _fits(known[name], shape):
                yield f"profile {number}: {name} is {known[name].shape}, given {tuple(shape)}"


def _write_plan(
    parsed: ParsedNetwork,
    target: BuildTarget,
    profiles: Sequence[Shapes],
    file: BinaryIO,
    progress: Progress,
) -> BuildState:
    """Build into a file; no bytes mean that TensorRT made no plan."""
    home, state = parsed.home, BuildState()
    monitor = make_monitor(home.trt, progress, STAGE, state)
    writer = make_writer(home.trt, file, state)
    config = home.make_config(
        parsed.builder,
        parsed.network,
        target,
        [_polygraphy_profile(one) for one in profiles],
        monitor,
    )
    with noting_interrupts(state):
        parsed.builder.build_serialized_network_to_stream(parsed.network, config, writer)
    state.raise_error()
    return state


def explain_failure(facts: Facts, messages: Sequence[Message]) -> Iterator[str]:
    """Turn a failed build's complaints into phrases with the nodes they name and what helps."""
    errors = [one.text for one in messages if one.severity in ("ERROR", "INTERNAL_ERROR")]
    texts = dict.fromkeys(text for text in map(shorten, errors) if text)
    for text in texts or ["TensorRT gave no reason"]:
        words = set(re.split(r"[\s{}'\",:;()\[\]]+", text))
        nodes = dict.fromkeys(layer.node for layer in facts.layers if layer.name in words)
        hint = next((hint for pattern, hint in _HINTS if pattern.search(text)), "")
        named = f"node {_listed(list(nodes))}: " if nodes else ""
        yield f"{named}{text}{f' ({hint})' if hint else ''}"


def _polygraphy_profile(shapes: Shapes) -> "Profile":
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for name, shape in shapes.items():
        profile.add(name, *shape)
    return profile


def _left_out(parsed: ParsedNetwork, messages: Sequence[Message]) -> Iterator[str]:
    """Find inputs that the builder dropped after the parser had taken them."""
    found = (_UNUSED.search(one.text) for one in messages if one.severity == "WARNING")
    names = dict.fromkeys(match[1] for match in found if match)
    if names:
        model = onnx.load(parsed.path, load_external_data=False)
        yield from unread_problems(model, tuple(names))


def _memory(messages: Sequence[Message]) -> dict[str, int]:
    found = {"Weights": 0, "Activation": 0}
    for message in messages:
        for kind, size in _MEMORY.findall(message.text):
            found[kind] = max(found[kind], int(size))
    return found


def _uses(layer: Layer, dtype: str) -> bool:
    return any(tensor.dtype == dtype for tensor in (*layer.given, *layer.outputs))


def _fits(tensor: Tensor, shape: ShapeRange) -> bool:
    """Compare ranks and fixed sizes, and the order of the three shapes."""
    ranks = {len(one) for one in (*shape, tensor.shape)}
    return len(ranks) == 1 and all(
        least <= usual <= most and (size == -1 or size == least == most)
        for size, least, usual, most in zip(tensor.shape, *shape, strict=True)
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"


def _where(parsed: ParsedNetwork, target: BuildTarget) -> str:
    return f"{parsed.path}: {parsed.home.title} cannot build this graph for {target.name}"
