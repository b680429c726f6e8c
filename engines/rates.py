"""How fast the stages were where they were measured: for rough estimates of time, nothing else.

Conditions, where a rate names no others: one core of an AMD EPYC (Zen 4) at 2.6 GHz, shared with
other work; torch 2.13, ONNX Runtime 1.32; two decoder layers of the released sizes with both
towers, embedding and head, values made from a seed. Rates of codes: two cores of an Intel Xeon at
2.6 GHz with AVX-512 VNNI. Expect a factor of two either way; more cores help most where FLOPs are
counted.
"""

from dataclasses import dataclass

ONE_CORE = "one core"
TWO_CORES = "two cores with VNNI and AMX"


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
LAY_OUT = Rate(per_s=200e6, unit="values", source="build, int4: 16e9 values in 80 s")
RELAY = Rate(per_s=70e6, unit="values", source="build: 0.55e9 values of experts in 8 s")
HASH = Rate(per_s=1.2e9, unit="bytes", source="verify: SHA-256 of 1.2e9 bytes in 0.92 s")
VERIFY = Rate(
    per_s=55e6, unit="values", source="verify, bf16: 1.45e9 values, module and session, in 26 s"
)
VERIFY_CODES = Rate(
    per_s=18e6, unit="values", source="verify, experts widened: 0.59e9 values in 32 s"
)
OPEN = Rate(per_s=115e6, unit="values", source="run, bf16: sessions of 1.45e9 values in 12.5 s")
OPEN_CODES = Rate(
    per_s=25e6, unit="values", source="run, codes widened: sessions of 1.45e9 values in 56 s"
)
OPEN_PACKED = Rate(
    per_s=2.1e9, unit="bytes", source="run/packed, int4: sessions of 8.5e9 bytes in 4 s"
)
OPEN_STOCK = Rate(
    per_s=0.37e9, unit="bytes", source="run/stock, int4: sessions of 1.4e9 bytes in 3.8 s"
)
READ = Rate(
    per_s=20e9, unit="bytes", source="run: 2.0e9 bytes of fp32 weights for one token in 0.098 s"
)
READ_CACHE = Rate(
    per_s=1.5e9, unit="bytes", source="run: 37.7e6 bytes of fp32 cache in 26 ms, beside other work"
)
FLOPS = Rate(
    per_s=80e9,
    unit="FLOP",
    source="run: 512 tokens behind none and 7680 in 2.2 and 5.9 s; 5328 patches in 89 s",
)
READ_PACKED = Rate(
    per_s=24.2e9, unit="bytes", source="run/packed, int4: 1.43e9 bytes for one token in 58.9 ms"
)
READ_PACKED_CACHE = Rate(
    per_s=12.0e9, unit="bytes", source="run/packed, int4: 173e6 bytes of int8 cache in 14.4 ms"
)
PACKED_FLOPS = Rate(
    per_s=970e9, unit="FLOP", source="run/packed, int4, AMX: 512 tokens behind none in 2.35 s"
)
PACKED_IMAGE_FLOPS = Rate(
    per_s=135e9, unit="FLOP", source="run/packed, int8: 2304 patches in 20 s, beside other work"
)
READ_STOCK = Rate(
    per_s=12e9, unit="bytes", source="run/stock, int4: 1.9 times as long as run/packed, in turn"
)
READ_STOCK_CACHE = Rate(
    per_s=1.5e9, unit="bytes", source="run/stock, int4: 6.4 times as long as run/packed, in turn"
)
STOCK_FLOPS = Rate(
    per_s=260e9, unit="FLOP", source="run/stock, int4: 2.2 times as long as run/packed, in turn"
)
STOCK_IMAGE_FLOPS = Rate(
    per_s=48e9, unit="FLOP", source="run/stock, int8: 2304 patches in 57 s, beside other work"
)

TRACE_BLOCK_S = 0.55
"""Tracing one block of the tower."""
SESSION_S = 0.07
"""Reading and checking a graph and making its session; seen: 0.39 s for five, nothing widened."""
TRACE_OTHERS_S = 6.0
"""Tracing projector, a dense layer, a MoE layer and the head: once each, however many there are."""


@dataclass(frozen=True, kw_only=True)
class RequestRates:
    """What requests are estimated with."""

    conditions: str
    weights: Rate
    """Read for a token."""
    cache: Rate
    """Read for a token."""
    prompt: Rate
    image: Rate


IN_FP32 = RequestRates(
    conditions=ONE_CORE, weights=READ, cache=READ_CACHE, prompt=FLOPS, image=FLOPS
)
PACKED = RequestRates(
    conditions=TWO_CORES,
    weights=READ_PACKED,
    cache=READ_PACKED_CACHE,
    prompt=PACKED_FLOPS,
    image=PACKED_IMAGE_FLOPS,
)
STOCK = RequestRates(
    conditions=TWO_CORES,
    weights=READ_STOCK,
    cache=READ_STOCK_CACHE,
    prompt=STOCK_FLOPS,
    image=STOCK_IMAGE_FLOPS,
)

RATES = {
    "export, one value": CONVERT,
    "calibrate, load one value": LOAD_MODULE,
    "calibrate, search the scale of one value": SEARCH,
    "calibrate, round and compare one value": COMPARE,
    "calibrate, store one value": STORE_CODES,
    "calibrate, samples": TORCH_FLOPS,
    "build, one value of experts that are not quantised": RELAY,
    "build, one value of codes": LAY_OUT,
    "verify, hash": HASH,
    "verify, one value": VERIFY,
    "verify, one value of experts that are widened": VERIFY_CODES,
    "run, load one value": OPEN,
    "run, load one value of codes that are widened": OPEN_CODES,
    "run/packed, load one byte of codes": OPEN_PACKED,
    "run/stock, load one byte of codes": OPEN_STOCK,
    "run, weights of one token": READ,
    "run, cache of one token": READ_CACHE,
    "run, prompts and images": FLOPS,
    "run/packed, weights of one token": READ_PACKED,
    "run/packed, cache of one token": READ_PACKED_CACHE,
    "run/packed, prompts": PACKED_FLOPS,
    "run/packed, images": PACKED_IMAGE_FLOPS,
    "run/stock, codes of one token": READ_STOCK,
    "run/stock, int8 cache of one token": READ_STOCK_CACHE,
    "run/stock, prompts": STOCK_FLOPS,
    "run/stock, images": STOCK_IMAGE_FLOPS,
}
"""All rates under the names of `docs/planning.md`."""
