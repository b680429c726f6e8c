"""The roof: bytes of a token by the bandwidth of the run."""

import pytest

from engines.cpu.traffic import Experts, Traffic
from engines.measure.bandwidth import Bandwidth
from engines.measure.roof import Roof
from engines.measure.rows import Row

EXPERTS = Experts(bytes=10.0, count=64, chosen=6, shared=2)
TRAFFIC = Traffic(dense_bytes=1000.0, experts=(EXPERTS,) * 2, cache_token_bytes=4)


def make_roof(*, last_cache_bytes: int = 0) -> Roof:
    bandwidth = Bandwidth(samples=(1.0, 2.0, 9.0), reader="kernels")
    return Roof(traffic=TRAFFIC, bandwidth=bandwidth, last_cache_bytes=last_cache_bytes)


def test_a_token_reads_dense_weights_its_experts_and_the_cache_before_it() -> None:
    assert TRAFFIC.at(0) == 1000 + 2 * 8 * 10
    assert TRAFFIC.at(100) == TRAFFIC.at(0) + 400


def test_tokens_that_step_together_share_weights_and_not_the_cache() -> None:
    distinct = 64 * (1 - (58 / 64) ** 2)
    assert EXPERTS.read_bytes(2) == pytest.approx(10 * (2 + distinct))
    assert EXPERTS.read_bytes(10_000) == pytest.approx(660)
    assert TRAFFIC.at(50, batch=2) == pytest.approx(1000 + 2 * EXPERTS.read_bytes(2) + 2 * 50 * 4)


def test_the_roof_of_a_row_is_that_of_its_middle_token() -> None:
    row = Row(kind="decode", tokens=9, depth=100)
    roof = make_roof()
    assert roof.moved_bytes(row) == TRAFFIC.at(105)
    assert roof.tokens_per_s(row) == pytest.approx(2e9 / TRAFFIC.at(105))


def test_slots_together_have_one_roof() -> None:
    row = Row(kind="decode", tokens=1, depth=0, batch=4)
    assert make_roof().tokens_per_s(row) == pytest.approx(4 * 2e9 / TRAFFIC.at(1, batch=4))


def test_memory_is_no_roof_over_prompts_nor_over_what_fits_in_the_last_cache() -> None:
    decode = Row(kind="decode", tokens=1, depth=0)
    assert make_roof().tokens_per_s(Row(kind="prompt", tokens=9, depth=0)) is None
    small = make_roof(last_cache_bytes=1160)
    assert (small.is_memory, small.tokens_per_s(decode)) == (False, None)
    assert small.moved_bytes(decode) == TRAFFIC.at(1)
    assert make_roof(last_cache_bytes=1159).tokens_per_s(decode) is not None
