"""A session lends its slots: two streams never write to one another's cache."""

from pathlib import Path

import numpy as np
import pytest

from runtime import GenerationLimits, Request, Sampling, Session
from runtime.engine.cache import LatentCache
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
    cache = LatentCache(1, 2, limits)
    with cache.window(0, [2], [0], 5) as window:
        window[:] = np.nan  # a request that ended with an error
    with cache.window(0, [2], [0], 1) as window:
        window[:] = 7
    with cache.window(0, [0], [0], 4) as window:
        window[:] = 1
    with cache.window(0, [0, 2], [4, 1], 1) as window:
        assert window.shape == (2, 1, 5, 2)
        np.testing.assert_array_equal(window[1, 0, :, 0], [7, 0, 0, 0, 0])
        window[0, 0, 4] = window[1, 0, 1] = 9
    with cache.window(0, [2], [2], 1) as window:
        np.testing.assert_array_equal(window[0, 0, :2, 0], [7, 9])
    with cache.window(0, [0], [5], 1) as window:
        np.testing.assert_array_equal(window[0, 0, :5, 0], [1, 1, 1, 1, 9])
