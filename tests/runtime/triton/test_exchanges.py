"""The thread that sends: in order, one failure apart from the others, who has gone away."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runtime.errors import CapacityError, InputError, NumericError, UnsupportedError
from runtime.generation.channels import Piece
from runtime.generation.sampling import Choice
from runtime.scheduling.errors import ClosedError, DeadlineError, QueueFullError
from runtime.scheduling.handle import End, Handle
from runtime.triton.errors import triton_error
from runtime.triton.exchanges import Exchange, Exchanges
from tests.runtime.scheduling.doubles import ask
from tests.runtime.triton.backend import Error, Sender, make_backend

PATIENCE_S = 10.0
STOPPED = End(reason="stop", result=None, error=None)


@pytest.fixture
def backend() -> Any:  # noqa: ANN401
    return make_backend()


@pytest.fixture
def ticks() -> list[float]:
    return []


@pytest.fixture
def exchanges(backend: Any, ticks: list[float]) -> Iterator[Exchanges]:  # noqa: ANN401
    one = Exchanges(backend, lambda: ticks.append(time.monotonic()))
    yield one
    one.close()


def wait_until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.005)


def begin(exchanges: Exchanges, *, is_streaming: bool = True) -> Exchange:
    exchange = Exchange(Sender(), is_streaming=is_streaming)
    exchanges.open(exchange)
    return exchange


def piece(text: str, *ids: int, channel: Any = "answer") -> Piece:  # noqa: ANN401
    choices = tuple(Choice(token_id=one, logprob=-float(one)) for one in ids)
    return Piece(text=text, channel=channel, choices=choices)


def make_handle(woken: threading.Event) -> Handle:
    return Handle(ask(1, 2), listener=None, wake=woken.set)


def test_pieces_are_sent_in_order_and_the_end_is_final(exchanges: Exchanges) -> None:
    one = begin(exchanges)
    for event in (piece("a", 1, channel="thinking"), piece("b", 2, 3), STOPPED):
        exchanges.tell(one, event)
    wait_until(lambda: exchanges.num_open == 0)
    sent = one.sender.sent
    assert [flags for _, flags in sent] == [0, 0, 1]
    assert [response.outputs["token_ids"] for response, _ in sent] == [[1], [2, 3], []]
    assert sent[0][0].outputs["thinking"] == [b"a"]
    assert sent[1][0].outputs["answer"] == [b"b"]
    assert sent[1][0].outputs["token_logprobs"] == [-2.0, -3.0]
    assert sent[2][0].outputs["finish_reason"] == [b"stop"]


def test_without_streaming_there_is_one_response(exchanges: Exchanges) -> None:
    one = begin(exchanges, is_streaming=False)
    for event in (piece("a", 1, channel="thinking"), piece("b", 2), piece("c", 3), STOPPED):
        exchanges.tell(one, event)
    wait_until(lambda: exchanges.num_open == 0)
    ((response, flags),) = one.sender.sent
    outputs = response.outputs
    assert (outputs["thinking"], outputs["answer"], flags) == ([b"a"], [b"bc"], 1)
    assert outputs["token_ids"] == [1, 2, 3]


def test_a_response_that_cannot_be_sent_ends_its_request_alone(
    exchanges: Exchanges,
    backend: Any,  # noqa: ANN401
) -> None:
    broken, whole = begin(exchanges), begin(exchanges)
    woken = threading.Event()
    handle = make_handle(woken)
    broken.submitted(handle)
    broken.sender.is_broken = True
    exchanges.tell(broken, piece("a", 1))
    exchanges.tell(whole, piece("b", 2))
    exchanges.tell(whole, STOPPED)
    wait_until(lambda: exchanges.num_open == 1)
    assert len(whole.sender.sent) == 2
    assert handle.request.is_cancelled
    assert woken.is_set()
    assert "no shared memory is left" in backend.log[0]


def test_whoever_goes_away_is_noticed_before_and_behind_the_submission(
    exchanges: Exchanges, ticks: list[float]
) -> None:
    early, late = begin(exchanges), begin(exchanges)
    first, second = make_handle(threading.Event()), make_handle(threading.Event())
    late.submitted(second)
    early.sender.is_gone = late.sender.is_gone = True
    wait_until(lambda: early.is_cancelled and late.is_cancelled)
    assert second.request.is_cancelled
    assert not first.request.is_cancelled
    early.submitted(first)
    assert first.request.is_cancelled
    assert ticks
    exchanges.tell(late, piece("a", 1))
    exchanges.tell(late, End(reason="cancelled", result=None, error=None))
    wait_until(lambda: exchanges.num_open == 1)
    ((response, flags),) = late.sender.sent
    assert (response.error.code, flags) == (Error.CANCELLED, 1)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("a"), Error.INVALID_ARG),
        (CapacityError("a"), Error.INVALID_ARG),
        (UnsupportedError("a"), Error.UNSUPPORTED),
        (QueueFullError("a", retry_after_s=1), Error.UNAVAILABLE),
        (ClosedError("a"), Error.UNAVAILABLE),
        (DeadlineError("a"), Error.UNAVAILABLE),
        (NumericError("a"), Error.INTERNAL),
    ],
)
def test_errors_have_the_codes_of_the_server(error: Exception, code: int) -> None:
    made = triton_error(make_backend(), error)
    assert (str(made), made.code) == ("a", code)


def test_what_no_string_of_the_server_can_hold_is_told_escaped(exchanges: Exchanges) -> None:
    named, mistaken = begin(exchanges), begin(exchanges)
    exchanges.tell(named, InputError("unknown field '\ud800'"))
    exchanges.tell(mistaken, ValueError("\ud800"))
    wait_until(lambda: exchanges.num_open == 0)
    told = [
        (str(response.error), flags)
        for one in (named, mistaken)
        for response, flags in one.sender.sent
    ]
    assert told == [("unknown field '\\ud800'", 1), ("ValueError: \\ud800", 1)]


@pytest.mark.parametrize("num_broken", [1, 2])
def test_an_end_that_cannot_be_sent_is_followed_by_a_plainer_one(
    num_broken: int,
    exchanges: Exchanges,
    backend: Any,  # noqa: ANN401
) -> None:
    one, next_one = begin(exchanges), begin(exchanges)
    one.sender.num_broken_ends = num_broken
    exchanges.tell(one, STOPPED)
    exchanges.tell(next_one, STOPPED)
    wait_until(lambda: exchanges.num_open == 0)
    ((response, flags),) = one.sender.sent
    assert flags == 1
    if num_broken == 1:
        assert (str(response.error), response.error.code) == (
            *("the last response could not be sent", Error.INTERNAL),
        )
    else:
        assert response is None
    assert len(next_one.sender.sent) == 1
    assert "a response could not be sent: RuntimeError: no \\ud800 end" in backend.log


def test_a_mistake_of_ours_is_told_with_its_class(exchanges: Exchanges) -> None:
    one = begin(exchanges)
    exchanges.tell(one, KeyError("x"))
    wait_until(lambda: exchanges.num_open == 0)
    ((response, flags),) = one.sender.sent
    assert (str(response.error), response.error.code) == ("KeyError: 'x'", Error.INTERNAL)
    assert flags == 1


def test_a_tick_that_fails_is_logged_and_answers_are_still_sent(
    backend: Any,  # noqa: ANN401
) -> None:
    def tick() -> None:
        raise RuntimeError("no metrics here")

    exchanges = Exchanges(backend, tick)
    wait_until(lambda: bool(backend.log))
    one = begin(exchanges)
    exchanges.tell(one, STOPPED)
    wait_until(lambda: exchanges.num_open == 0)
    exchanges.close()
    assert "RuntimeError: no metrics here" in backend.log
    assert len(one.sender.sent) == 1
