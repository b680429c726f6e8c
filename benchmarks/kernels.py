"""The routing kernels on a CUDA device: right first, then fast.

    python -m benchmarks.kernels [--json FILE]
    python -m benchmarks.kernels --interpret      correctness alone, tiny sizes, on the CPU

On a device the kernels are compiled ahead of time and launched as an engine's plugins launch them.
Every output is poisoned first and compared with float64. Results are JSON.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from engines.kernels.attributes import make_launch
from engines.kernels.compile import FIRST_WITH_FP8
from engines.kernels.ops import grouped_down_op, grouped_up_op, router_op, sort_op
from engines.kernels.specs import ExpertFormat, ExpertSizes, OpSpec
from export.recipe.recipe import WeightFormat

from .kernel_checks import (
    ROUTINGS,
    SCALE,
    Case,
    check_halves,
    check_router,
    check_sort,
    sort_pairs,
)

if TYPE_CHECKING:
    import torch

    from .kernel_checks import Run

Codes = Literal["int8", "fp8", "int4"]
FORMATS: tuple[tuple[str, Codes | None, int | None], ...] = (
    ("bf16", None, None),
    ("fp16", None, None),
    ("fp32", None, None),
    ("fp16", "int8", None),
    ("bf16", "int8", None),
    ("bf16", "fp8", None),
    ("fp16", "int4", 32),
    ("bf16", "int4", 128),
    ("fp32", "int4", 64),
)
REAL = ExpertSizes(width=2048, inner=1408, num_experts=64, num_chosen=6)
TINY = ExpertSizes(width=128, inner=128, num_experts=5, num_chosen=2)
REAL_TOKENS = (1, 2, 7, 16, 40, 170, 171, 511, 512, 1000, 4096)
TINY_TOKENS = (1, 3, 41)
TIMED_TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
TURNS = 30


@dataclass(kw_only=True)
class Report:
    """What is printed."""

    device: str
    versions: dict[str, str]
    checks: int = 0
    failures: list[str] = field(default_factory=list)
    bandwidth_gb_s: float | None = None
    """Of a copy on this device, read and written."""
    timings: list[dict[str, object]] = field(default_factory=list)


def check_all(
    report: Report, sizes: ExpertSizes, tokens: Sequence[int], forms: Sequence[ExpertFormat],
    place: str, compile_op: Callable[[OpSpec], "Run"],
) -> None:  # fmt: skip
    """Check every op, format, number of tokens and way of routing."""
    route = compile_op(router_op(sizes, scale=SCALE, normalize=True))
    sort = compile_op(sort_op(sizes))
    for form in forms:
        case = Case(sizes, form, place)
        ops = (grouped_up_op(sizes, form), grouped_down_op(sizes, form))
        runs = {op.op: compile_op(op) for op in ops}
        for num_tokens in tokens:
            problems = [("router", one) for one in check_router(case, route, num_tokens)]
            for how in ROUTINGS:
                experts = case.experts(num_tokens, how)
                problems += [(how, one) for one in check_sort(case, sort, experts)]
                problems += [(how, one) for one in check_halves(case, runs, experts)]
            report.checks += 1 + 3 * len(ROUTINGS)
            name = f"{form.base} x {form.weights or form.base}, {num_tokens} tokens"
            report.failures += [f"{name}, {how}: {problem}" for how, problem in problems]
        sys.stderr.write(
            f"{form.base} x {form.weights or form.base}: {len(report.failures)} wrong\n"
        )


def time_all(
    report: Report, sizes: ExpertSizes, forms: Sequence[ExpertFormat],
    compile_op: Callable[[OpSpec], "Run"],
) -> None:  # fmt: skip
    """Time every op; other experts in every turn, so that weights come from memory."""
    report.bandwidth_gb_s = measure_bandwidth()
    route = compile_op(router_op(sizes, scale=SCALE, normalize=True))
    sort = compile_op(sort_op(sizes))
    for form in forms:
        case = Case(sizes, form, "cuda")
        up, down = grouped_up_op(sizes, form), grouped_down_op(sizes, form)
        runs = {"Router": route, "SortByExpert": sort}
        runs |= {op.op: compile_op(op) for op in (up, down)}
        for num_tokens in TIMED_TOKENS:
            for name, turns, num_bytes in _turns(case, num_tokens):
                seconds = _median_seconds(runs[name], turns, num_tokens)
                share = num_bytes / seconds / 1e9 / report.bandwidth_gb_s
                report.timings.append(
                    {
                        "op": name,
                        "format": f"{form.base} x {form.weights or form.base}",
                        "tokens": num_tokens,
                        "us": round(seconds * 1e6, 2),
                        "bytes": num_bytes,
                        "share_of_bandwidth": round(share, 3),
                    }
                )


class Turn(NamedTuple):
    """Arguments of one launch."""

    inputs: list["torch.Tensor"]
    outputs: list["torch.Tensor"]


class Timed(NamedTuple):
    """An op to time."""

    op: str
    turns: list[Turn]
    num_bytes: int


def _turns(case: Case, num_tokens: int) -> Iterator[Timed]:
    import torch

    sizes, base = case.sizes, case.form.base
    hidden = case.rows(num_tokens, sizes.width, kind=base)
    wide, scores = hidden.float(), torch.rand((num_tokens, sizes.num_chosen), device="cuda")
    choices = [case.experts(num_tokens, "random") for _ in range(TURNS)]
    pairs = [sort_pairs(one, sizes.num_experts) for one in choices]
    inner = case.rows(num_tokens, sizes.num_chosen, sizes.inner, kind=base)
    parts = case.rows(num_tokens, sizes.num_chosen, sizes.width, kind=base)
    upper, lower = [*case.gate.stored, *case.up.stored], case.down.stored
    counts = [torch.bincount(one.flatten(), minlength=sizes.num_experts) for one in choices]
    busy = float(torch.stack(counts).bool().float().mean())  # share of experts that are read
    routing = Turn([wide, case.weight, case.bias], [choices[0].clone(), scores.clone()])
    yield Timed("Router", [routing] * TURNS, _size(*routing.inputs, *routing.outputs))
    sorting = [Turn([one], [torch.empty_like(t) for t in pairs[0]]) for one in choices]
    yield Timed("SortByExpert", sorting, _size(choices[0], *pairs[0]))
    up = [Turn([hidden, a, *b, *upper], [inner]) for a, b in zip(choices, pairs, strict=True)]
    yield Timed("GroupedUp", up, int(busy * _size(*upper)) + _size(hidden, inner))
    down = [Turn([inner, scores, *b, *lower], [parts]) for b in pairs]
    yield Timed("GroupedDown", down, int(busy * _size(*lower)) + _size(inner, parts))


def _size(*tensors: "torch.Tensor") -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def _median_seconds(run: "Run", turns: Sequence[Turn], num_tokens: int) -> float:
    import torch

    new_event: Any = torch.cuda.Event  # torch has no types for these two
    sleep: Any = torch.cuda._sleep

    def once(turn: Turn) -> float:
        start, end = (new_event(enable_timing=True) for _ in range(2))
        sleep(500_000)  # the device waits, so that launching is not what is timed
        start.record()
        run(turn.inputs, turn.outputs, num_tokens)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return median([once(turn) for turn in turns][5:])


def measure_bandwidth() -> float:
    """Copy 1 GiB: GB/s, read and written."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copies = [Turn([source], [target])] * 20

    def copy(inputs: "Sequence[torch.Tensor]", outputs: "Sequence[torch.Tensor]", _: int) -> None:
        outputs[0].copy_(inputs[0])

    seconds = _median_seconds(copy, copies, 0)
    return 2 * _size(source) / seconds / 1e9


def compile_for_card(sm: int) -> "Callable[[OpSpec], Run]":
    """Compile ops for a device, and launch them as plugins do."""
    import torch

    from runtime.plugins.driver import load_driver, run_launch

    driver = load_driver()

    def compile_op(op: OpSpec) -> "Run":
        launch = make_launch(op, (sm,))

        def run(
            inputs: "Sequence[torch.Tensor]", outputs: "Sequence[torch.Tensor]", num_tokens: int
        ) -> None:
            read, written = ([one.data_ptr() for one in side] for side in (inputs, outputs))
            stream = torch.cuda.current_stream().cuda_stream
            run_launch(driver, launch, read, written, num_tokens, stream)

        return run

    return compile_op


def interpret_op(op: OpSpec) -> "Run":
    """Run an op in Triton's interpreter."""
    from engines.kernels.interpret import run_interpreted

    def run(
        inputs: "Sequence[torch.Tensor]", outputs: "Sequence[torch.Tensor]", num_tokens: int
    ) -> None:
        sides = {"input": inputs, "output": outputs}
        places = [
            (one.name, *one.source.partition(" ")) for one in op.variants[0].kernel.parameters
        ]
        tensors = {name: sides[side][int(at)] for name, side, _, at in places if side in sides}
        run_interpreted(op, tensors, num_tokens)

    return run


def main(words: Sequence[str]) -> int:
    """Check, time if there is a device, and print; 1 if a check failed or nothing could run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels")
    parser.add_argument("--interpret", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results here")
    options = parser.parse_args(words)
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    import torch

    torch.manual_seed(0)
    versions = {name: version(name) for name in ("torch", "triton")}
    if options.interpret:
        report = Report(device="interpreter", versions=versions)
        check_all(report, TINY, TINY_TOKENS, _forms(89), "cpu", interpret_op)
    elif torch.cuda.is_available():
        sm = 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
        report = Report(device=f"{torch.cuda.get_device_name()} sm{sm}", versions=versions)
        check_all(report, REAL, REAL_TOKENS, _forms(sm), "cuda", compile_for_card(sm))
        if not report.failures:
            time_all(report, REAL, _forms(sm), compile_for_card(sm))
    else:
        sys.stderr.write("no CUDA device; --interpret checks the kernels on the CPU\n")
        return 1
    text = json.dumps(asdict(report), indent=2) + "\n"
    if options.json:
        options.json.write_text(text)
    else:
        sys.stdout.write(text)
    return int(bool(report.failures))


def _forms(sm: int) -> list[ExpertFormat]:
    forms = []
    for base, codes, group in FORMATS:
        weights = WeightFormat(codes=codes, group=group) if codes else None
        if codes != "fp8" or sm >= FIRST_WITH_FP8:
            forms.append(ExpertFormat(base=base, weights=weights))
    return forms


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
