"""`bench serve` on a small endpoint, and `bench` without a verb."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engines.load import run
from runtime import files
from runtime.errors import KimiVLError
from tests.engines.load.fake_openai import Behaviour, say, serving

from .conftest import Tool

ROOT = Path(__file__).resolve().parents[2]


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
    assert (fields["load"]["data"], fields["load"]["text_share"]) == ("nano", 0.5)
    assert fields["load"]["timeout_s"] == 300
    assert fields["endpoint"]["tokens_by"] == "pieces"


def test_results_are_printed_before_the_picture_is_written(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise KimiVLError("no room for the picture")

    monkeypatch.setattr(files, "write_bytes", refuse)
    with serving(Behaviour(answer=say("a"))) as url:
        words = ("--requests", "2", "--json", "--picture", tmp_path / "load.svg")
        done = tool("bench", "serve", url, *words)
    assert done.status == 1
    assert json.loads(done.stdout)["requests"]["answered"] == 2
    assert "no room for the picture" in done.stderr


def test_ctrl_c_ends_it_though_requests_wait_for_answers() -> None:
    behaviour = Behaviour(answer=lambda number, write: time.sleep(8))
    with serving(behaviour) as url:
        words = [sys.executable, "tool.py", "bench", "serve", url, "--warmup", "0"]
        with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            end = time.monotonic() + 60
            while behaviour.now < 8:
                assert time.monotonic() < end
                time.sleep(0.02)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=30)
            took_s = time.monotonic() - start
    assert (process.returncode, told) == (130, "interrupted\n")
    assert took_s < 4  # an answer takes 8
    assert len(behaviour.bodies) == 8


def test_a_failed_warmup_and_requests_sent_late_are_told(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = Behaviour(
        answer=say("a", pause_s=0.1), status=lambda number: 503 if number == 0 else 200
    )
    monkeypatch.setattr(run, "MAX_IN_FLIGHT", 1)
    with serving(behaviour) as url:
        done = tool("bench", "serve", url, "--requests", "4", "--warmup", "1", "--rate", "100")
    assert done.status == 0
    assert "warning: a warm-up failed with 503: come again" in done.stderr
    assert "requests were sent late" in done.stderr
    asked = [json.dumps(body["messages"]) for body in behaviour.bodies]
    assert len(set(asked)) == 5


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
        (("--within", "first=1"), 1, "limits: 1 problem: expected ttft=SECONDS"),
        (("--timeout", "nan"), 2, "--timeout"),
        (("--timeout", "1e12"), 2, "--timeout"),
        (("--rate", "inf"), 1, "rate: expected 0.001 to 10000, found inf"),
        (("--text-share", "nan"), 2, "--text-share"),
        (("--picture", "."), 1, "is a folder"),
        (("--picture", "/proc/none/load.svg"), 1, "/proc/none/load.svg"),
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
