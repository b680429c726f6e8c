"""Requests that nobody thought of: made from the server's own OpenAPI document, and against it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import CHECKS
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode

from runtime import Session
from runtime.server import chat_request
from tests.runtime.server.served import CHAT, PATIENCE_S, Served, serving

NUM_EXAMPLES = 80
CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


@pytest.fixture(scope="module")
def served(session: Session) -> Iterator[Served]:
    with serving(session, max_new_tokens=4) as one:
        yield one


def send_many(served: Served, mode: GenerationMode, num: int) -> Counter[int]:
    """Send requests that keep the document, or that break it; count the answers' statuses.

    Raises:
        FailureGroup: an answer is not one that the document promises.
    """
    document = httpx2.get(f"{served.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    checks: list[Any] = CHECKS.get_by_names(CHECKED)
    statuses: Counter[int] = Counter()

    @hypothesis.settings(
        max_examples=num,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=schema[CHAT]["POST"].as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case[Any]) -> None:
        answer = case.call(base_url=served.url, timeout=PATIENCE_S)
        case.validate_response(answer, checks=checks)
        statuses[answer.status_code] += 1

    send()
    return statuses


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_makes_the_server_fail_or_say_what_its_document_does_not(
    served: Served, mode: GenerationMode
) -> None:
    statuses = send_many(served, mode, NUM_EXAMPLES)
    served.wait_until_idle()
    assert served.stats.errors == {}
    assert statuses[400] > 0
    assert (statuses[200] > 0) == (mode is GenerationMode.POSITIVE)


def test_a_planted_failure_is_found(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(value: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(chat_request, "find_problems", fail)
    with pytest.raises(FailureGroup, match="Server error"):
        send_many(served, GenerationMode.POSITIVE, 3)


def test_the_other_paths_answer_as_their_document_says(served: Served) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    checks: list[Any] = CHECKS.get_by_names(CHECKED)
    for path in ("/", "/v1/models", "/health/live", "/health/ready", "/metrics"):
        case = schema[path]["GET"].Case()
        case.call_and_validate(checks=checks, timeout=PATIENCE_S)
    for name, status in (("nano", 200), ("other", 404)):
        case = schema["/v1/models/{model}"]["GET"].Case(path_parameters={"model": name})
        answer = case.call_and_validate(checks=checks, timeout=PATIENCE_S)
        assert answer.status_code == status
