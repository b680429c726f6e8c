"""What happens to a request before the scheduler has it: pictures apart, looked after, in time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from examples.nano.score import HERE
from runtime.config import KimiVLConfig
from runtime.errors import CapacityError
from runtime.generation.request import Request
from runtime.prompt.encoder import Prompt, PromptEncoder
from runtime.prompt.messages import Message
from runtime.scheduling.errors import DeadlineError
from runtime.scheduling.handle import End
from runtime.scheduling.options import Deadlines
from runtime.scheduling.scheduler import Scheduler
from runtime.triton.exchanges import Exchange, Exchanges
from runtime.triton.preparing import Preparation, Sent
from runtime.triton.questions import Questions, Values
from tests.runtime.byte_model import TOKENIZER
from tests.runtime.scheduling.doubles import ask, make_memory_engine
from tests.runtime.triton.backend import Error, Sender, make_backend
from tests.runtime.triton.test_exchanges import wait_until

PICTURE = (Path(__file__).resolve().parents[3] / "examples" / "numbers.png").read_bytes()


class StoppedQuestions(Questions):
    """Waits at requests with images until it is let go; all become the same request."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(), max_images=4)  # type: ignore[arg-type]  # never asked
        self.go_on = threading.Event()
        self.begun = threading.Semaphore(0)

    def request(
        self, values: Values, messages: Sequence[Message], look: Callable[[], None]
    ) -> Request:
        if "images" in values:
            self.begun.release()
            assert self.go_on.wait(10)
            look()
        return ask(1, 2, 3)


@pytest.fixture
def questions() -> StoppedQuestions:
    return StoppedQuestions()


@pytest.fixture
def exchanges() -> Iterator[Exchanges]:
    one = Exchanges(make_backend(), lambda: None)
    yield one
    one.close()


@pytest.fixture
def preparation(questions: StoppedQuestions, exchanges: Exchanges) -> Iterator[Preparation]:
    with Scheduler(make_memory_engine(), TOKENIZER) as scheduler:
        one = Preparation(make_backend(), questions, scheduler, exchanges)
        yield one
        questions.go_on.set()
        one.close()
        assert scheduler.drain(10)


def send(
    exchanges: Exchanges, *, num_images: int = 0, timeout_s: float | None = None, age_s: float = 0.0
) -> Sent:
    values: dict[str, Any] = {"prompt": b"Add."}
    if num_images:
        values["images"] = [PICTURE] * num_images
    exchange = Exchange(Sender(), is_streaming=False)
    exchanges.open(exchange)
    return Sent(exchange=exchange, values=values, timeout_s=timeout_s, arrived=monotonic() - age_s)


def last_of(sent: Sent) -> Any:  # noqa: ANN401
    wait_until(lambda: bool(sent.exchange.sender.sent))
    ((response, flags),) = sent.exchange.sender.sent
    assert flags == 1
    return response


def test_text_does_not_wait_for_the_images_of_others(
    preparation: Preparation, questions: StoppedQuestions, exchanges: Exchanges
) -> None:
    shown = [send(exchanges, num_images=1) for _ in range(8)]
    for one in shown:
        preparation.begin(one)
    assert questions.begun.acquire(timeout=10)
    text = send(exchanges)
    preparation.begin(text)
    assert last_of(text).outputs["finish_reason"] != [b""]
    assert not any(one.exchange.sender.sent for one in shown)
    questions.go_on.set()
    assert all(last_of(one).outputs["finish_reason"] != [b""] for one in shown)


def test_what_was_cancelled_or_is_overdue_is_not_prepared_further(
    preparation: Preparation, questions: StoppedQuestions, exchanges: Exchanges
) -> None:
    gone, late = send(exchanges, num_images=1), send(exchanges, num_images=1, timeout_s=0.05)
    for one in (gone, late):
        preparation.begin(one)
        assert questions.begun.acquire(timeout=10)
    gone.exchange.cancel()
    wait_until(lambda: monotonic() - late.arrived > 0.05)
    questions.go_on.set()
    assert last_of(gone).error.code == Error.CANCELLED
    assert "not answered within 0.05 s" in str(last_of(late).error)
    expired = send(exchanges, num_images=1, timeout_s=1.0, age_s=2.0)
    preparation.begin(expired)
    assert "not answered within 1 s" in str(last_of(expired).error)
    assert not questions.begun.acquire(blocking=False)
    assert exchanges.unsubmitted == {"DeadlineError": 2}


def test_a_deadline_counts_from_the_arrival(preparation: Preparation, exchanges: Exchanges) -> None:
    sent = send(exchanges, timeout_s=7.0, age_s=3.0)
    submitted: list[dict[str, Any]] = []

    def submit(request: Request, **given: Any) -> object:  # noqa: ANN401
        submitted.append(given)
        return SimpleNamespace(cancel=lambda: None)

    preparation._scheduler = SimpleNamespace(submit=submit)  # type: ignore[assignment]  # a double
    preparation.begin(sent)
    wait_until(lambda: bool(submitted))
    (given,) = submitted
    assert given["deadlines"] == Deadlines(total_s=7.0)
    assert given["arrived"] == sent.arrived
    given["listener"](End(reason="error", result=None, error=DeadlineError("over")))
    assert "over" in str(last_of(sent).error)


def test_too_many_images_are_refused_before_one_is_decoded() -> None:
    questions = StoppedQuestions()
    values = {"prompt": b"Add.", "images": [b"no image"] * 5}
    with pytest.raises(CapacityError, match=r"5 images are over the model's limit of 4 "):
        questions.messages(values)
    assert len(questions.messages(values | {"images": [b"no image"] * 4})[0].parts) == 5


def test_between_two_images_it_is_asked_whether_to_go_on() -> None:
    folder = HERE / "checkpoint"
    encoder = PromptEncoder.load(folder, KimiVLConfig.load(folder / "config.json"))
    made: list[Prompt] = []
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise TimeoutError

    def keep(prompt: Prompt, *_: object, **__: object) -> Request:
        made.append(prompt)
        return ask(1)

    session = SimpleNamespace(encoder=encoder, request=keep)
    questions = Questions(session, max_images=9)  # type: ignore[arg-type]  # as far as it is used
    values: Values = {"prompt": b"Add.", "images": [PICTURE] * 3}
    messages = questions.messages(values)
    with pytest.raises(TimeoutError):
        questions.request(values, messages, look)
    assert (len(looks), made) == (2, [])
    questions.request(values, messages, lambda: None)
    assert len(made[0].images) == 3
