"""Many clients, and everything that goes wrong: nobody else notices, and no slot is lost."""

import contextlib
import json
import logging
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from runtime import Session
from runtime.engine.protocol import NonFiniteRowsError
from runtime.scheduling import statistics
from runtime.server.gateway import ACCESS_LOG
from tests.runtime.server.served import (
    ENDLESS,
    PATIENCE_S,
    Pace,
    Served,
    events_of,
    serving,
    streaming,
    text_message,
    wait_until,
)
from tests.runtime.server.test_chat import example
from tests.runtime.server.test_connections import connect, head_of

SUM = text_message("What is 4 + 38?")


@contextlib.contextmanager
def begun(served: Served) -> Iterator[Iterator[str]]:
    """A stream whose first piece was read; the others are given."""
    with streaming(served) as answer:
        pieces = answer.iter_text()
        next(pieces)
        yield pieces


def mixed_bodies() -> list[dict[str, Any]]:
    """Pictures and texts, streamed and whole, free and constrained; some of them twice."""
    bodies: list[dict[str, Any]] = [{"messages": example(number)[0]} for number in range(8)]
    bodies += [{"messages": text_message(f"What is {n} + 38?")} for n in range(4)]
    bodies += [{"messages": SUM, "guided_regex": "[0-9]{2,6}", "max_tokens": 40}, bodies[0]]
    bodies += [{"messages": SUM, "temperature": 0.9, "seed": 7}, bodies[9]]
    return [{**body, "stream": number % 3 == 0} for number, body in enumerate(bodies)]


def text_of(answer: httpx2.Response) -> tuple[str, str]:
    """Thinking and answer, however they came."""
    assert answer.status_code == 200, answer.text
    if not answer.headers["content-type"].startswith("text/event-stream"):
        message = answer.json()["choices"][0]["message"]
        return message.get("reasoning_content", ""), message["content"]
    events = events_of(answer.text)
    assert events[-1] == "[DONE]"
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    return (
        "".join(delta.get("reasoning_content", "") for delta in deltas),
        "".join(delta.get("content", "") for delta in deltas),
    )


def test_sixteen_mixed_requests_at_once_get_the_answers_that_each_gets_alone(
    served: Served,
) -> None:
    bodies = mixed_bodies()
    assert len(bodies) == 16
    alone = [text_of(served.post(body)) for body in bodies]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda body: text_of(served.post(body)), bodies))
    assert together == alone
    stats = served.wait_until_idle()
    assert (stats.errors, set(stats.ended), sum(stats.ended.values())) == (
        {},
        {"stop"},
        32,
    )


def test_clients_that_go_away_free_their_slots_and_others_go_on(served: Served, pace: Pace) -> None:
    wanted = text_of(served.post({"messages": SUM}))
    pace.pause_s = 0.01
    with ThreadPoolExecutor(1) as pool:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(begun(served))
            assert served.stats.num_running == 3
            kept = pool.submit(served.post, {"messages": SUM})
            wait_until(lambda: served.stats.num_running == 4)
        # All three connections are closed.
        wait_until(lambda: served.stats.ended.get("cancelled", 0) == 3)
        assert text_of(kept.result(PATIENCE_S)) == wanted
    served.wait_until_idle()


def test_one_request_more_than_fits_is_a_429_that_says_when_to_come_again(
    session: Session, pace: Pace
) -> None:
    with serving(session, max_queued=2) as served, ThreadPoolExecutor(6) as pool:
        pace.open.clear()
        body = {"messages": SUM, "max_tokens": 3}
        waiting = [pool.submit(served.post, body) for _ in range(6)]
        wait_until(lambda: served.service.num_inside == 6)
        refused = served.post(body)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        pace.open.set()
        answers = [one.result(PATIENCE_S).status_code for one in waiting]
        assert answers == [200] * 6
        served.wait_until_idle()
        assert served.post(body).status_code == 200


def test_a_client_that_retries_gets_through_a_full_queue(session: Session, pace: Pace) -> None:
    with serving(session, max_queued=1) as served, ThreadPoolExecutor(5) as pool:
        pace.open.clear()
        waiting = [pool.submit(served.post, {"messages": SUM}) for _ in range(5)]
        wait_until(lambda: served.service.num_inside == 5)
        patient = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=5)
        opener = threading.Timer(0.2, pace.open.set)
        opener.start()
        assert patient.chat.completions.create(model="nano", messages=SUM).choices
        assert {one.result(PATIENCE_S).status_code for one in waiting} == {200}


def test_a_deadline_is_a_504_before_the_answer_and_an_event_within_it(
    session: Session, pace: Pace
) -> None:
    with serving(session, request_timeout_s=0.5) as served:
        pace.pause_s = 0.05
        whole = served.post({**ENDLESS, "stream": False})
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "deadline_exceeded")
        with streaming(served) as answer:
            assert answer.status_code == 200
            last = events_of(answer.read().decode())[-1]
        assert last["error"]["code"] == "deadline_exceeded"
        with pytest.raises(openai.APIError, match="not answered within"):
            list(served.client().chat.completions.create(
                model="nano", messages=SUM, stream=True, extra_body={"guided_regex": "[a-z]{400}"}
            ))  # fmt: skip
        served.wait_until_idle()


def test_a_stream_that_never_got_a_slot_is_a_504_by_its_status(
    session: Session, pace: Pace
) -> None:
    with serving(session, queue_timeout_s=0.3) as served, contextlib.ExitStack() as stack:
        pace.pause_s = 0.02
        for _ in range(4):
            stack.enter_context(begun(served))
        late = stack.enter_context(streaming(served))
        assert late.status_code == 504
        assert "got none" in late.read().decode()


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_while_it_waits_for_a_slot_is_noted_as_gone(
    served: Served, pace: Pace, caplog: pytest.LogCaptureFixture, *, is_stream: bool
) -> None:
    with caplog.at_level(logging.INFO, ACCESS_LOG), contextlib.ExitStack() as stack:
        pace.pause_s = 0.01
        for _ in range(4):
            stack.enter_context(begun(served))
        body = json.dumps({"messages": SUM, "stream": is_stream}).encode()
        with connect(served) as client:
            client.sendall(head_of(len(body)) + body)
            wait_until(lambda: served.stats.num_queued == 1)
        wait_until(lambda: served.service.num_inside == 4 and bool(caplog.messages))
        line = json.loads(caplog.messages[-1])
    assert (line["status"], line["error"], line["reason"]) == (499, "disconnected", "cancelled")


def test_logits_that_are_not_finite_end_one_stream_with_an_event(
    served: Served, session: Session, monkeypatch: pytest.MonkeyPatch, pace: Pace
) -> None:
    wanted = text_of(served.post({"messages": SUM}))
    is_bad = threading.Event()
    step = session.engine.step

    def poison_slot(slots: list[int], *words: Any) -> Any:  # noqa: ANN401  the engine's own
        found = step(slots, *words)
        if not is_bad.is_set() or bad_slot not in slots or len(found) != len(slots):
            return found
        is_finite = np.array(slots) != bad_slot
        raise NonFiniteRowsError("the logits are not finite", found=found, is_finite=is_finite)

    pace.pause_s = 0.01
    bad_slot = -1
    with streaming(served) as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        bad_slot = next(job.run.slot for job in served.service.scheduler._batch.jobs)
        monkeypatch.setattr(session.engine, "step", poison_slot)
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(served.post, {"messages": SUM, "guided_regex": "[0-9]+"})
            wait_until(lambda: served.stats.num_running == 2)
            is_bad.set()
            text += "".join(pieces)
            is_bad.clear()
            assert beside.result(PATIENCE_S).status_code == 200
    error = events_of(text)[-1]["error"]
    assert (error["code"], error["type"]) == ("NumericError", "server_error")
    assert text_of(served.post({"messages": SUM})) == wanted
    assert served.wait_until_idle().errors == {"NumericError": 1}


def test_an_engine_that_fails_is_a_500_by_name_and_makes_the_server_unready(
    served: Served, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: Any) -> Any:  # noqa: ANN401  the engine's own
        raise RuntimeError("planted")

    ready = f"{served.url}/health/ready"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("step", "step_greedy"):
            patch.setattr(session.engine, name, fail)
        for _ in range(3):
            answer = served.post({"messages": SUM})
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "EngineFailedError"
        served.wait_until_idle()
        assert httpx2.get(ready).status_code == 503
        assert httpx2.get(f"{served.url}/health/live").status_code == 200
        monkeypatch.setattr(statistics, "RECOVERY_S", 0.0)
        assert httpx2.get(ready).status_code == 200, "after a while somebody may try"
        monkeypatch.undo()
    assert served.post({"messages": SUM}).status_code == 200
    wait_until(lambda: httpx2.get(ready).status_code == 200)


def test_running_streams_finish_and_new_requests_are_told_503_while_the_server_drains(
    session: Session, pace: Pace
) -> None:
    with serving(session, drain_timeout_s=PATIENCE_S) as served:
        pace.pause_s = 0.02
        with streaming(served, guided_regex="[a-z]{40}") as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            served.server.handle_exit(signal.SIGTERM, None)
            wait_until(lambda: served.service.is_draining)
            late = served.post({"messages": SUM})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
            assert "retry-after" in late.headers
            assert httpx2.get(f"{served.url}/health/ready").status_code == 503
            text += "".join(pieces)
        assert events_of(text)[-1] == "[DONE]"
        wait_until(lambda: served.server.should_exit)
        assert served.server.ended_by is signal.SIGTERM


def test_streams_that_outlast_the_drain_are_told_so(session: Session, pace: Pace) -> None:
    with serving(session, drain_timeout_s=0.2) as served:
        pace.pause_s = 0.02
        with streaming(served) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            served.server.handle_exit(signal.SIGTERM, None)
            text += "".join(pieces)
        assert events_of(text)[-1]["error"]["code"] == "shutting_down"


def test_a_picture_that_the_encoder_fails_on_ends_its_own_request(
    served: Served, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(session.engine, "encode", fail)
    answer = served.post({"messages": example(0)[0]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "EngineFailedError")
    assert served.post({"messages": SUM}).status_code == 200
    served.wait_until_idle()
