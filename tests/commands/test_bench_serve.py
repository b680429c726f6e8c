"""`bench serve` on a small endpoint, and `bench` without a verb."""

import json
from pathlib import Path

import pytest

from tests.engines.load.fake_openai import Behaviour, say, serving

from .conftest import Tool


def test_it_measures_prints_and_draws(tool: Tool, tmp_path: Path) -> None:
    behaviour, picture = Behaviour(answer=say("a", "b")), tmp_path / "load.svg"
    words = ("--requests", "12", "-c", "3", "--text-share", "0.5", "--within", "ttft=5,total=9")
    with serving(behaviour) as url:
        done = tool("bench", "serve", url, *words, "--picture", picture)
        assert done.status == 0, done.stderr
        assert "time to first token, with images" in done.stdout
        assert "answered                12 of 12" in done.stdout
        assert f"picture: {picture}" in done.stderr
        assert picture.read_text().startswith("<svg")
        found = tool("bench", "serve", url, *words, "--json")
    fields = json.loads(found.stdout)
    assert fields["requests"] == {"sent": 12, "answered": 12}
    assert fields["goodput"]["requests"] == 12
    assert fields["load"]["concurrency"] == 3
    assert {one["images"] > 0 for one in fields["samples"]} == {False, True}


def test_failures_are_counted_and_a_run_without_an_answer_fails(tool: Tool) -> None:
    behaviour = Behaviour(answer=say("a"), status=lambda number: 503 if number % 2 else 200)
    with serving(behaviour) as url:
        done = tool("bench", "serve", url, "--requests", "4", "--warmup", "0", "-c", "1")
        assert done.status == 0
        assert "warning: 2 requests failed with 503; the first: come again" in done.stderr
        behaviour.status = lambda number: 500
        done = tool("bench", "serve", url, "--requests", "2", "--rate", "50")
    assert (done.status, done.stdout) == (1, "")
    assert "no request was answered; the first: 500: come again" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("-c", "2", "--rate", "3"), 2, "contradicts --rate"),
        (("--within", "first=1"), 1, "limits: expected ttft=SECONDS"),
        (("--data", "gone.jsonl"), 1, "neither a readable JSONL file"),
        (("--api-key-file", "gone.txt"), 1, "the API key cannot be read"),
        ((), 1, "expected http://HOST:PORT"),
    ],
)
def test_wrong_words_are_refused(
    words: tuple[str, ...], status: int, message: str, tool: Tool
) -> None:
    done = tool("bench", "serve", "host", *words)
    assert done.status == status
    assert message in done.stderr


def test_the_key_is_sent_and_never_said(tool: Tool, tmp_path: Path) -> None:
    behaviour, key = Behaviour(answer=say("a")), tmp_path / "key"
    key.write_text("secret-word\n")
    with serving(behaviour) as url:
        done = tool("bench", "serve", url, "--requests", "1", "--api-key-file", key, "--json")
    assert set(behaviour.keys) == {"Bearer secret-word"}
    assert "secret-word" not in done.stdout + done.stderr


def test_bench_without_a_verb_means_an_artifact(tool: Tool, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for words in (("bench", gone), ("bench", "artifact", gone), ("bench", "--json", gone)):
        done = tool(*words)
        assert done.status == 1
        assert f"{gone}: no such folder" in done.stderr
    assert "serve" in tool("bench", "-h").stdout
