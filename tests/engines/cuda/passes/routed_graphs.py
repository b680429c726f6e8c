"""A layer's experts with the router in front of them, and what they mean, in fp64."""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from tests.engines.passes.coded_graphs import Array, Coded, build, coded

HEAD = """g (TYPE[B, S, C] x) => (TYPE[B, S, C] y)
    <TYPE[N, WIDTH] flat, int64[N, KK] experts, float[N, KK] scores, TYPE[N, WIDTH] mixed,
     TYPE[EXPERTS, WIDTH, INNER] gate, TYPE[EXPERTS, WIDTH, INNER] up,
     TYPE[EXPERTS, INNER, WIDTH] down> {
    flat = Reshape (x, rows)
    wide = Cast <to: int = 1> (flat)
    experts, scores = kimivl.Router <k: int = KK, scale: float = SCALE, normalize: int = NORMALIZE>
        (wide, router, bias)
    DEQUANTISED
    inner = kimivl.ExpertsUp (flat, experts, gate, up)
    mixed = kimivl.ExpertsDown (inner, experts, scores, down)
    shape = Shape (x)
    routed = Reshape (mixed, shape)
"""
ALONE = "    y = Identity (routed)\n}"
WITH_SHARED = """
    gated = MatMul (x, shared_gate)
    half = Sigmoid (gated)
    swished = Mul (gated, half)
    lifted = MatMul (x, shared_up)
    both = Mul (swished, lifted)
    shared = MatMul (both, shared_down)
    both_kinds = Add (routed, shared)
    y = Identity (both_kinds)
}"""
_NAMES: dict[type, str] = {np.float16: "float16", np.float32: "float"}


@dataclass(frozen=True, kw_only=True)
class Routed:
    """Sizes and formats; the router's columns come in equal pairs, so that an odd K cuts one."""

    bits: int = 4
    base: type = np.float16
    width: int = 128
    inner: int = 64
    num_experts: int = 10
    k: int = 3
    shared: int = 64
    """Width of the shared MLP; none if 0."""
    shared_group: int = 32
    scale: float = 2.446
    normalize: int = 1
    offset: float = 0.0
    """Of the router's products."""
    in_pairs: bool = True
    is_dead: bool = False
    """Whether every score of a positive token is zero."""
    matrices: dict[str, Coded] = field(init=False)
    router: Array = field(init=False)
    bias: Array = field(init=False)

    def __post_init__(self) -> None:
        """Draw codes, and a router whose products are exact in fp32, so that ties are ties."""
        random = np.random.default_rng(4)
        half = (self.num_experts + 1) // 2
        columns = random.integers(-8, 9, (self.width, half)) / 16
        biases = random.integers(0, 33, half) / 32
        if self.in_pairs:
            columns, biases = np.repeat(columns, 2, axis=1), np.repeat(biases, 2)
        else:
            columns = random.integers(-8, 9, (self.width, self.num_experts)) / 16
            biases = random.integers(0, 65, self.num_experts) / 64
        columns = np.full_like(columns, -100) if self.is_dead else columns
        object.__setattr__(self, "router", columns[:, : self.num_experts].astype(np.float32))
        object.__setattr__(self, "bias", biases[: self.num_experts].astype(np.float32))
        object.__setattr__(self, "matrices", self._matrices())

    def _matrices(self) -> dict[str, Coded]:
        up, down = (self.width, self.inner), (self.inner, self.width)
        shapes = {"gate": up, "up": up, "down": down}
        made = {
            name: coded(seed, (self.num_experts, *shape), bits=self.bits, group=32, base=self.base)
            for seed, (name, shape) in enumerate(shapes.items())
        }
        up, down = (self.width, self.shared), (self.shared, self.width)
        shapes = {"shared_gate": up, "shared_up": up, "shared_down": down} if self.shared else {}
        return made | {
            name: coded(seed, shape, bits=self.bits, group=self.shared_group, base=self.base)
            for seed, (name, shape) in enumerate(shapes.items(), start=5)
        }

    def graph(self) -> ir.Model:
        text = HEAD + (WITH_SHARED if self.shared else ALONE)
        for word, value in {
            "TYPE": _NAMES[self.base],
            "WIDTH": self.width,
            "INNER": self.inner,
            "EXPERTS": self.num_experts,
            "KK": self.k,
            "SCALE": self.scale,
            "NORMALIZE": self.normalize,
            "C]": f"{self.width}]",
        }.items():
            text = text.replace(word, str(value))
        rows = np.array([-1, self.width])
        return build(text, self.matrices, rows=rows, router=self.router, bias=self.bias)

    def feeds(self, *, slots: int = 2, tokens: int = 5) -> dict[str, Array]:
        random = np.random.default_rng(8)
        x = random.integers(-16, 17, (slots, tokens, self.width)) / 16
        return {"x": x.astype(self.base)}

    def routing(self, given: dict[str, Array]) -> tuple[Array, Array]:
        """Experts and weights of each token: the bias chooses, the lower id of equal ones."""
        rows = given["x"].astype(np.float64).reshape(-1, self.width)
        plain = 1 / (1 + np.exp(-(rows @ self.router.astype(np.float64))))
        chosen = np.argsort(-(plain + self.bias), axis=1, kind="stable")[:, : self.k]
        scores = np.take_along_axis(plain, chosen, axis=1)
        if self.normalize:
            scores = scores / (scores.sum(axis=1, keepdims=True) + 1e-20)
        return chosen, scores * self.scale

    def oracle(self, given: dict[str, Array]) -> Array:
        """Expert by expert."""
        meaning = {name: one.meaning for name, one in self.matrices.items()}
        rows = given["x"].astype(np.float64).reshape(-1, self.width)
        y = np.zeros_like(rows)
        for row, (experts, scores) in enumerate(zip(*self.routing(given), strict=True)):
            for expert, score in zip(experts, scores, strict=True):
                parts = (meaning[name][expert] for name in ("gate", "up", "down"))
                y[row] += score * _swiglu(rows[row], *parts)
        if self.shared:
            y += _swiglu(rows, *(meaning[f"shared_{name}"] for name in ("gate", "up", "down")))
        return y.reshape(given["x"].shape)


def _swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    gated = x @ gate
    result: Array = (gated / (1 + np.exp(-gated)) * (x @ up)) @ down
    return result


def weights_on_a_card(logits: Array, k: int) -> Array:
    """What the CUDA kernel of `QMoE` and `MoE` makes of `router_probs`, and of nothing else.

    Softmax over all, the K largest, the lower id of equal ones, normalised.
    """
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    taken = np.argsort(-wide, axis=1, kind="stable")[:, :k]
    weights = np.zeros_like(shares)
    np.put_along_axis(weights, taken, np.take_along_axis(shares, taken, axis=1), axis=1)
    normalised: Array = weights / weights.sum(axis=1, keepdims=True)
    return normalised
