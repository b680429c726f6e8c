"""How fast the stages were where they were measured: for rough estimates of time, nothing else.

Conditions: one core of an AMD EPYC (Zen 4) at 2.6 GHz, shared with other work; torch 2.13, ONNX
Runtime 1.32; two decoder layers of the released sizes with both towers, embedding and head, values
made from a seed. Expect a factor of two either way; more cores help most where FLOPs are counted.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What was done in a second."""

    per_s: float
    unit: str
    source: str
    """The run that it comes from."""

    def time_s(self, amount: float) -> float:
        """Time for an amount in the rate's unit."""
        return amount / self.per_s


CONVERT = Rate(
    per_s=70e6, unit="values", source="export: 1.79e9 values turned, cast and written in 29 s"
)
LOAD_MODULE = Rate(
    per_s=80e6, unit="values", source="calibrate: 1.45e9 values into torch modules in 18 s"
)
SEARCH = Rate(
    per_s=8e6,
    unit="values",
    source="calibrate, int4 with clip and balance: 0.66e9 values in 83 s",
)
COMPARE = Rate(per_s=31e6, unit="values", source="calibrate: 1.45e9 values rounded in 47 s")
STORE_CODES = Rate(
    per_s=60e6, unit="values", source="calibrate: 1.79e9 values as codes and scales in 29 s"
)
TORCH_FLOPS = Rate(
    per_s=45e9, unit="FLOP", source="calibrate: samples of 70 tokens, 42 to 63e9 in a layer"
)
RELAY = Rate(per_s=70e6, unit="values", source="build: 0.55e9 values of experts in 8 s")
HASH = Rate(per_s=1.2e9, unit="bytes", source="verify: SHA-256 of 1.2e9 bytes in 0.92 s")
VERIFY = Rate(
    per_s=55e6, unit="values", source="verify, bf16: 1.45e9 values, module and session, in 26 s"
)
VERIFY_CODES = Rate(per_s=18e6, unit="values", source="verify, int4: 0.59e9 values in 32 s")
OPEN = Rate(per_s=115e6, unit="values", source="run, bf16: sessions of 1.45e9 values in 12.5 s")
OPEN_CODES = Rate(per_s=25e6, unit="values", source="run, int4: sessions of 1.45e9 values in 56 s")
READ = Rate(
    per_s=20e9, unit="bytes", source="run: 2.0e9 bytes of fp32 weights for one token in 0.098 s"
)
FLOPS = Rate(
    per_s=80e9,
    unit="FLOP",
    source="run: 512 tokens behind none and 7680 in 2.2 and 5.9 s; 5328 patches in 89 s",
)

TRACE_BLOCK_S = 0.55
"""Tracing one block of the tower."""
TRACE_OTHERS_S = 6.0
"""Tracing projector, a dense layer, a MoE layer and the head: once each, however many there are."""

RATES = {
    "export, one value": CONVERT,
    "calibrate, load one value": LOAD_MODULE,
    "calibrate, search the scale of one value": SEARCH,
    "calibrate, round and compare one value": COMPARE,
    "calibrate, store one value": STORE_CODES,
    "calibrate, samples": TORCH_FLOPS,
    "build, one value of the experts": RELAY,
    "verify, hash": HASH,
    "verify, one value": VERIFY,
    "verify, one value of quantised experts": VERIFY_CODES,
    "run, load one value": OPEN,
    "run, load one value of a quantised recipe": OPEN_CODES,
    "run, weights of one token": READ,
    "run, prompts and images": FLOPS,
}
"""All rates under the names of `docs/planning.md`."""
