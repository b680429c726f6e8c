"""A session lends its slots: two streams never write to one another's cache."""

from pathlib import Path

import numpy as np
import pytest

from runtime import GenerationLimits, Request, Sampling, Session
from runtime.artifact.records import CacheRecord, CacheTensor
from runtime.engine.cpu.cache import LatentCache
from runtime.errors import CapacityError
from runtime.limits import Limits

SHORT = GenerationLimits(max_new_tokens=8)


def make_request(session: Session, text: str) -> Request:
    prompt = session.encode([{"role": "user", "content": text}])
    return session.request(prompt, Sampling.greedy(), SHORT)


def ids_of(request: Request) -> tuple[int, ...]:
    assert request.result is not None
    return request.result.ids


def test_streams_side_by_side_answer_like_each_alone(artifact: Path) -> None:
    session = Session.open(artifact)
    alone = []
    for text in ("the first", "and another one, longer"):
        request = make_request(session, text)
        list(session.stream(request))
        alone.append(ids_of(request))
    requests = [make_request(session, text) for text in ("the first", "and another one, longer")]
    streams = [session.stream(request) for request in requests]
    for _ in range(20):  # in turn, piece by piece
        for stream in streams:
            next(stream, None)
    assert [ids_of(request) for request in requests] == alone


def test_a_stream_without_a_free_slot_is_refused_and_a_closed_one_frees_its_slot(
    artifact: Path,
) -> None:
    session = Session.open(artifact)  # built with two slots
    streams = [session.stream(make_request(session, "open")) for _ in range(3)]
    next(streams[0])
    next(streams[1])
    with pytest.raises(CapacityError, match="all 2 slots are answering"):
        next(streams[2])
    with pytest.raises(CapacityError, match="all 2 slots are answering"):
        session.logits(make_request(session, "open").prompt)
    streams[0].close()
    list(session.stream(make_request(session, "after one was closed")))


def test_what_an_earlier_text_left_behind_a_short_slot_is_not_in_its_window() -> None:
    limits = Limits(max_tokens=6, max_input_tokens=6, max_slots=3, max_patches=4, prefill_chunk=4)
    record = CacheRecord(
        tensors={
            "cache": CacheTensor(dtype="int8", width=2),
            "cache_scales": CacheTensor(dtype="float32", width=1),
        }
    )
    cache = LatentCache(1, record, limits)
    assert record.token_bytes == 2 + 4
    with cache.window(0, [2], [0], 5) as window:
        window["cache"][:] = 100  # a request that ended with an error
        window["cache_scales"][:] = np.nan
    fill(cache, slot=2, length=0, values=[7])
    fill(cache, slot=0, length=0, values=[1, 2, 3, 4])
    with cache.window(0, [0, 2], [4, 1], 1) as window:
        for name, width in (("cache", 2), ("cache_scales", 1)):
            assert window[name].shape == (2, 1, 5, width)
            np.testing.assert_array_equal(window[name][1, 0, :, 0], [7, 0, 0, 0, 0])
            window[name][0, 0, 4] = window[name][1, 0, 1] = 9
    for name in record.tensors:
        with cache.window(0, [2], [2], 1) as window:
            np.testing.assert_array_equal(window[name][0, 0, :2, 0], [7, 9])
        with cache.window(0, [0], [5], 1) as window:
            np.testing.assert_array_equal(window[name][0, 0, :5, 0], [1, 2, 3, 4, 9])
    cache.copy_prefix(0, 1, 3)
    with cache.window(0, [1], [3], 1) as window:
        assert [window[name][0, 0, :3, 0].tolist() for name in record.tensors] == [[1, 2, 3]] * 2


def fill(cache: LatentCache, *, slot: int, length: int, values: list[int]) -> None:
    with cache.window(0, [slot], [length], len(values)) as window:
        for tensor in window.values():
            tensor[0, 0, length:] = np.array(values)[:, None]
