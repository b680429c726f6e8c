"""What the dialect of Triton makes of its client's results and exceptions."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as client

from engines.load.asked import Question
from engines.load.endpoint import Endpoint, Heard, RequestFailedError, Wishes
from engines.load.opening import connect

PLAIN = Question(messages=[{"role": "user", "content": "Hello."}], num_images=0)
USAGE = '{"prompt_tokens": 9, "reused_tokens": 4, "new_tokens": 6}'
Tell = Callable[[Any, Any], None]


def response(*ids: int, text: str = "", usage: str = "", is_last: bool = False) -> Any:  # noqa: ANN401
    outputs = {
        "answer": [text.encode()],
        "thinking": [b""],
        "token_ids": np.array(ids, dtype=np.int64),
        "usage": [usage.encode()],
    }
    parameters = {"triton_final_response": SimpleNamespace(bool_param=is_last)}
    protocol = SimpleNamespace(outputs=list(outputs), parameters=parameters)
    return SimpleNamespace(get_response=lambda: protocol, as_numpy=outputs.get)


def foreign() -> Any:  # noqa: ANN401
    """The result of a model with other outputs."""
    made = response(is_last=True)
    made.as_numpy = lambda name: None
    return made


def connected(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Tell], None]) -> Endpoint:
    """An endpoint whose client answers as a function says."""

    class Client:
        def __init__(self, address: str) -> None:
            self.tell: Tell = lambda result, error: None

        def is_model_ready(self, *_: object, **__: object) -> bool:
            return True

        def start_stream(self, tell: Tell) -> None:
            self.tell = tell

        def async_stream_infer(self, *_: object, **__: object) -> None:
            answer(self.tell)

        def stop_stream(self, **_: object) -> None:
            """Have nothing to stop."""

        def close(self) -> None:
            """Have nothing to close."""

    monkeypatch.setattr(client, "InferenceServerClient", Client)
    return connect("grpc://host:1/kimi_vl", Wishes(max_new_tokens=4, timeout_s=5))


def test_parts_are_heard_with_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(tell: Tell) -> None:
        tell(response(1, 2, 3), None)
        tell(response(4, 5, text="a"), None)
        tell(response(6), None)
        tell(response(usage=USAGE, is_last=True), None)

    heard: list[Heard] = []
    used = connected(monkeypatch, answer).ask(PLAIN, heard.append)
    assert [(one.num_tokens, one.has_text) for one in heard] == [(3, False), (2, True), (1, False)]
    assert (used.prompt_tokens, used.cached_tokens, used.new_tokens) == (9, 4, 6)


def test_whatever_the_client_raises_or_a_foreign_model_answers_fails_one_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(tell: Tell) -> None:
        raise client.InferenceServerException("The stream is no longer in valid state")

    def answer_otherwise(tell: Tell) -> None:
        tell(foreign(), None)

    def count_nothing(tell: Tell) -> None:
        tell(response(usage="{}", is_last=True), None)

    def nest(tell: Tell) -> None:
        tell(response(usage="[" * 100_000, is_last=True), None)

    def end_early(tell: Tell) -> None:
        tell(response(1, text="a", is_last=True), None)

    for answer, kind in (
        (refuse, "connection"),
        (answer_otherwise, "malformed"),
        (count_nothing, "malformed"),
        (nest, "malformed"),
        (end_early, "cut"),
    ):
        with pytest.raises(RequestFailedError) as raised:
            connected(monkeypatch, answer).ask(PLAIN, lambda heard: None)
        assert raised.value.kind == kind
