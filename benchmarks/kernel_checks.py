"""Inputs for the routing kernels in every format, and float64 to compare their outputs with.

The comparison shares no code with the kernels. Outputs are poisoned: what stays unwritten is seen.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from engines.kernels.specs import ExpertFormat, ExpertSizes

if TYPE_CHECKING:
    import torch

    Run = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], int], None]
    """Launches an op: inputs, outputs, N."""

SCALE = 2.446
ROUTINGS = ("random", "one expert", "one each")

ROUNDING = {"fp32": 2e-6, "fp16": 2**-11, "bf16": 2**-8}
"""One rounding of the result."""
OF_LARGEST = 2e-5
"""What sums in fp32 may add, as a share of the largest result."""


class Matrices(NamedTuple):
    """Stacked matrices as stored, and how to read one."""

    stored: list["torch.Tensor"]
    """Codes, then scales if there are any."""
    group: int
    """Inputs that share a scale; 0: there are none."""

    def values(self, expert: int) -> "torch.Tensor":
        """Give one expert's matrix in float64, independently of the kernels."""
        import torch

        codes = self.stored[0][expert]
        if len(self.stored) == 1:
            return codes.double()
        steps = self.stored[1][expert].double().repeat_interleave(self.group, 0)
        if codes.shape[1] == steps.shape[1]:
            return codes.double() * steps
        unsigned = codes.view(torch.uint8).int()
        pairs = torch.stack([unsigned % 16, unsigned // 16], -1).flatten(1)
        return torch.where(pairs < 8, pairs, pairs - 16).double() * steps


class Case:
    """Everything that the four ops read, for one format and one way of routing."""

    def __init__(self, sizes: ExpertSizes, form: ExpertFormat, place: str) -> None:
        self.sizes, self.form, self.place = sizes, form, place
        up, down = (sizes.width, sizes.inner), (sizes.inner, sizes.width)
        self.gate, self.up, self.down = (self._matrices(*shape) for shape in (up, up, down))
        self.weight = self._normal(sizes.width, sizes.num_experts) * sizes.width**-0.5
        self.bias = self._normal(sizes.num_experts) * 0.05

    def _normal(self, *shape: int) -> "torch.Tensor":
        import torch

        return torch.randn(shape, device=self.place)

    def _matrices(self, num_in: int, num_out: int) -> Matrices:
        import torch

        count, codes, base = self.sizes.num_experts, self.form.codes, _type(self.form.base)
        if self.form.weights is None:
            stack = torch.empty((count, num_in, num_out), dtype=base, device=self.place)
            for one in stack:
                one.copy_(self._normal(num_in, num_out) * num_in**-0.5)
            return Matrices([stack], 0)
        group = self.form.group or num_in
        if codes == "fp8":
            stack = torch.stack(
                [self._normal(num_in, num_out).to(_type("fp8")) for _ in range(count)]
            )
        else:
            columns = num_out // 2 if codes == "int4" else num_out
            shape = (count, num_in, columns)
            stack = torch.randint(-128, 128, shape, dtype=torch.int8, device=self.place)
        typical = {"fp8": 1.0, "int8": 73.0, "int4": 4.6}[codes]
        steps = torch.rand((count, num_in // group, num_out), device=self.place) + 0.5
        return Matrices([stack, (steps * num_in**-0.5 / typical).to(base)], group)

    def rows(self, *shape: int, kind: str) -> "torch.Tensor":
        """Draw what meets the matrices."""
        return self._normal(*shape).to(_type(kind))

    def experts(self, num_tokens: int, how: str) -> "torch.Tensor":
        """Draw the choice of each token: int64 (N, K)."""
        import torch

        shape, count = (num_tokens, self.sizes.num_chosen), self.sizes.num_experts
        if how == "one expert":
            return torch.full(shape, count - 2, device=self.place)
        if how == "one each":
            return (torch.arange(shape[0] * shape[1], device=self.place) % count).view(shape)
        return torch.rand((num_tokens, count), device=self.place).topk(shape[1], 1).indices


def _type(name: str) -> "torch.dtype":
    import torch

    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return kinds.get(name, torch.float8_e4m3fn)


def sort_pairs(experts: "torch.Tensor", num_experts: int) -> list["torch.Tensor"]:
    """Sort as the op must: order, starts."""
    import torch

    flat = experts.flatten()
    counts = torch.bincount(flat, minlength=num_experts)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return [torch.sort(flat, stable=True).indices.int(), starts.int()]


def check_router(case: Case, run: "Run", num_tokens: int) -> list[str]:
    """Compare the choice where float64 decides it clearly, and its scores."""
    import torch

    sizes = case.sizes
    hidden = case.rows(num_tokens, sizes.width, kind="fp32")
    experts = torch.full((num_tokens, sizes.num_chosen), -1, device=case.place)
    scores = torch.full(experts.shape, torch.nan, device=case.place)
    run([hidden, case.weight, case.bias], [experts, scores], num_tokens)
    plain = torch.sigmoid(hidden.double() @ case.weight.double())
    best = (plain + case.bias.double()).topk(min(sizes.num_chosen + 1, sizes.num_experts), 1)
    gaps = (best.values[:, :-1] - best.values[:, 1:]).min(1).values
    is_clear = gaps > 1e-6
    wanted = best.indices[:, : sizes.num_chosen]
    if not (experts[is_clear] == wanted[is_clear]).all():
        return ["other experts"]
    inside = experts.clamp(0, sizes.num_experts - 1)
    exact = plain.gather(1, inside)
    exact = exact / exact.sum(1, keepdim=True) * SCALE
    return [] if ((scores / exact - 1).abs() < 1e-5).all() else ["other scores"]


def check_sort(case: Case, run: "Run", experts: "torch.Tensor") -> list[str]:
    """Compare order and starts, element by element."""
    import torch

    wanted = sort_pairs(experts, case.sizes.num_experts)
    found = [torch.full_like(one, -7) for one in wanted]
    run([experts], found, len(experts))
    return [
        f"other {name}"
        for name, a, b in zip(("order", "starts"), found, wanted, strict=True)
        if not torch.equal(a, b)
    ]


def check_halves(case: Case, runs: dict[str, "Run"], experts: "torch.Tensor") -> list[str]:
    """Compare both halves of the experts, expert by expert in float64."""
    import torch

    sizes, base, num_tokens = case.sizes, case.form.base, len(experts)
    pairs = sort_pairs(experts, sizes.num_experts)
    hidden = case.rows(num_tokens, sizes.width, kind=base)
    inner = case.rows(*experts.shape, sizes.inner, kind=base)
    scores = torch.rand(experts.shape, device=case.place)
    lifted = torch.full((*experts.shape, sizes.inner), torch.nan).to(hidden)
    parts = torch.full((*experts.shape, sizes.width), torch.nan).to(hidden)
    up = [hidden, experts, *pairs, *case.gate.stored, *case.up.stored]
    runs["GroupedUp"](up, [lifted], num_tokens)
    runs["GroupedDown"]([inner, scores, *pairs, *case.down.stored], [parts], num_tokens)
    found: set[str] = set()
    for expert in range(sizes.num_experts):
        tokens, ranks = torch.nonzero(experts == expert, as_tuple=True)
        gated = hidden[tokens].double() @ case.gate.values(expert)
        up_wanted = gated.sigmoid() * gated * (hidden[tokens].double() @ case.up.values(expert))
        weighed = inner[tokens, ranks].double() * scores[tokens, ranks, None].double()
        for name, result, wanted in (
            ("up", lifted, up_wanted),
            ("down", parts, weighed @ case.down.values(expert)),
        ):
            if len(tokens) and not _is_near(result[tokens, ranks].double(), wanted, base):
                found.add(f"other {name}")
    return sorted(found)


def _is_near(found: "torch.Tensor", wanted: "torch.Tensor", base: str) -> bool:
    allowed = ROUNDING[base] * wanted.abs() + OF_LARGEST * wanted.abs().max()
    return bool(((found - wanted).abs() <= allowed).all())  # false for a NaN
