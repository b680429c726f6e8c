"""Who gets in, what is logged and counted."""

import errno
import json
import logging
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import openai
import pytest

from runtime import Session
from runtime.errors import InputError, UnsupportedError
from runtime.server import chat_request
from runtime.server import serving as serving_module
from runtime.server.gateway import ACCESS_LOG
from runtime.server.keys import ApiKeys
from runtime.server.options import ServerOptions
from runtime.server.serving import bind, check_installed
from tests.runtime.server.served import PATIENCE_S, Served, serving, text_message, wait_until

ROOT = Path(__file__).resolve().parents[3]
SUM = text_message("What is 4 + 38?")


def write_keys(folder: Path, text: str) -> Path:
    path = folder / "keys.txt"
    path.write_text(text)
    return path


def test_who_has_no_key_gets_health_and_page_only(session: Session, tmp_path: Path) -> None:
    keys = ApiKeys.load(write_keys(tmp_path, "# for the tests\nfirst\n\n  second  \n  # x\n"))
    with serving(session, keys=keys) as served:
        statuses = {
            path: httpx2.get(f"{served.url}{path}").status_code
            for path in ("/", "/health/live", "/health/ready", "/v1/models", "/metrics", "/other")
        }
        assert statuses == {
            "/": 200, "/health/live": 200, "/health/ready": 200,
            "/v1/models": 401, "/metrics": 401, "/other": 401,
        }  # fmt: skip
        assert served.post({"messages": SUM}).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            served.client().models.list()
        for key in ("first", "second"):
            client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)
            assert client.models.list().data


@pytest.mark.parametrize(
    "header",
    ["", "first", "Bearer", "Bearer ", "Basic first", "Bearer firs", "Bearer # x", "Bearer é"],
)
def test_only_a_whole_key_behind_bearer_is_one(tmp_path: Path, header: str) -> None:
    keys = ApiKeys.load(write_keys(tmp_path, "# x\nfirst\n"))
    assert not keys.allow(header)
    assert keys.allow("bearer first")


@pytest.mark.parametrize(
    ("text", "words"), [("# none\n\n", "holds no API key"), ("two words\n", "line 1: a key is")]
)
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ApiKeys.load(write_keys(tmp_path, text))
    with pytest.raises(InputError, match="not readable"):
        ApiKeys.load(tmp_path)
    with pytest.raises(InputError, match="absent: no such file; --api-keys names"):
        ApiKeys.load(tmp_path / "absent")


def test_a_server_for_this_machine_answers_to_no_other_name(served: Served) -> None:
    url = f"{served.url}/v1/models"
    port = served.url.rpartition(":")[2]
    local = (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST", "127.9.9.9")
    for host in local:
        assert httpx2.get(url, headers={"host": host}).status_code == 200
    others = ("localhost.evil.example", "127.0.0.1.evil.example", "192.168.0.7", "[fe80::1]", "")
    for host in (f"evil.example:{port}", *others):
        assert httpx2.get(url, headers={"host": host}).status_code == 421


def test_a_server_at_another_loopback_address_answers_to_it(session: Session) -> None:
    with serving(session, host="127.0.0.2") as served:
        assert served.url.startswith("http://127.0.0.2:")
        assert httpx2.get(f"{served.url}/v1/models").status_code == 200


def test_other_origins_are_told_nothing_unless_they_are_named(
    session: Session, tmp_path: Path
) -> None:
    keys = ApiKeys.load(write_keys(tmp_path, "first\n"))
    preflight = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,authorization",
    }
    allowed = "access-control-allow-origin"
    with serving(session) as served:
        url = f"{served.url}/v1/chat/completions"
        assert allowed not in httpx2.options(url, headers=preflight).headers
        assert allowed not in httpx2.get(served.url, headers=preflight).headers
    with serving(session, keys=keys, cors_origins=("https://a.example",)) as served:
        url = f"{served.url}/v1/chat/completions"
        answer = httpx2.options(url, headers=preflight)
        assert (answer.status_code, answer.headers[allowed]) == (200, "https://a.example")
        other = httpx2.options(url, headers={**preflight, "origin": "https://b.example"})
        assert allowed not in other.headers
        more = {**preflight, "access-control-request-headers": "x-stainless-os,x-stainless-lang"}
        assert httpx2.options(url, headers=more).status_code == 200
        asked = httpx2.get(served.url, headers={"origin": "https://a.example"})
        assert asked.headers["access-control-expose-headers"] == "X-Request-Id, Retry-After"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::", "gpu.example.org"])
def test_an_address_that_others_reach_needs_keys_or_a_word(host: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--api-keys FILE, or --allow-anyone"):
        ServerOptions(host=host, model_names=("a",))
    assert not ServerOptions(host=host, model_names=("a",), allow_anyone=True).is_loopback
    assert not ServerOptions(host=host, model_names=("a",), api_keys=tmp_path).is_loopback
    assert ServerOptions(host="::1", model_names=("a",)).is_loopback


def test_wrong_options_are_named_at_once() -> None:
    words = (
        "7 problems: --max-body-bytes: .* found 0; --max-queued: expected at least 0, found -100; "
        "--image-cache-bytes: .*; --queue-timeout: .* found 0; --request-timeout: .* found nan"
    )
    with pytest.raises(InputError, match=words):
        ServerOptions(
            port=70_000,
            model_names=("",),
            max_body_bytes=0,
            max_queued=-100,
            image_cache_bytes=-1,
            queue_timeout_s=0,
            request_timeout_s=float("nan"),
        )


def test_a_taken_port_is_told_in_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}: cannot be served at"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["256.1.1.1", "no-such.invalid", "a..b", "203.0.113.1"])
def test_a_host_that_is_none_of_this_machine_advises_another_host(host: str) -> None:
    with pytest.raises(InputError, match=rf"{host}:0: cannot be served at: .*another --host$"):
        bind(host, 0)


def test_of_two_servers_that_start_together_on_one_port_the_second_is_told_at_once() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match="Address already in use; choose another --port"):
            bind("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S):
            pass  # it waits in the system until somebody answers


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux")
def test_a_connection_whose_peer_takes_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "_UNREAD_MS", 300)
    with bind("127.0.0.1", 0) as listener, socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(listener.getsockname())
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE_S)
            with pytest.raises(TimeoutError) as caught:
                connection.sendall(bytes(1 << 26))
            assert caught.value.errno == errno.ETIMEDOUT, "the system's own, not the test's"


def test_the_log_has_one_line_for_each_request_and_nothing_that_was_said(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.name == ACCESS_LOG]

    with caplog.at_level(logging.INFO, ACCESS_LOG):
        served.post({"messages": SUM}, headers={"x-request-id": "mine"})
        served.post({"messages": SUM, "secret-field": 1})
        httpx2.get(f"{served.url}/secret-path?secret=1")
        wait_until(lambda: len(said()) == 3)  # a line is written behind its answer
        served.wait_until_idle()
    lines = said()
    good, bad, lost = map(json.loads, lines)
    assert (good["request_id"], good["status"], good["reason"]) == ("mine", 200, "stop")
    assert good["new_tokens"] > 3
    assert (bad["status"], bad["error"]) == (400, "invalid_value")
    assert (lost["status"], lost["path"]) == (404, "other")
    assert "secret" not in "".join(lines)
    assert "What is" not in "".join(lines)


def test_of_a_mistake_of_ours_the_log_has_the_place_and_not_the_text(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "what somebody said"

    def fail(value: object) -> None:
        raise KeyError(said)

    monkeypatch.setattr(chat_request, "find_problems", fail)
    with caplog.at_level(logging.INFO):
        answer = served.post({"messages": SUM}, headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        wait_until(lambda: "KeyError in mine" in caplog.text)
        served.wait_until_idle()
    assert "in fail" in caplog.text
    assert "somebody" not in caplog.text + answer.text


def test_the_numbers_tell_what_happened(served: Served) -> None:
    for _ in range(2):
        served.post({"messages": SUM})
    served.post({})
    httpx2.get(f"{served.url}/nowhere")
    httpx2.get(f"{served.url}/v1/models/nano")
    httpx2.get(f"{served.url}/v1/models/other/one")
    served.wait_until_idle()
    answer = httpx2.get(f"{served.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = served.numbers()
    stats = served.stats
    assert samples["kimivl_slots", "free"] == stats.num_slots == 4
    assert samples["kimivl_slots", "used"] == samples["kimivl_requests_preparing",] == 0
    assert samples["kimivl_requests_total", "stop"] == 2
    assert samples["kimivl_prompt_tokens_total",] == stats.prompt_tokens > 0
    assert samples["kimivl_prefix_hit_tokens_total",] == stats.reused_tokens > 0
    assert samples["kimivl_output_tokens_total",] == stats.new_tokens
    assert samples["kimivl_time_to_first_token_seconds_count",] == 2
    assert samples["kimivl_time_per_output_token_seconds_count",] == stats.new_tokens - 2
    assert samples["kimivl_request_seconds_count",] == 2
    assert samples["kimivl_cache_tokens",] == stats.num_cached_tokens
    chat = "/v1/chat/completions"
    assert samples["kimivl_http_requests_total", chat, "200"] == 2
    assert samples["kimivl_http_requests_total", chat, "400"] == 1
    assert samples["kimivl_http_requests_total", "other", "404"] == 1
    assert samples["kimivl_http_requests_total", "/v1/models/{model}", "200"] == 1
    assert samples["kimivl_http_requests_total", "/v1/models/{model}", "404"] == 1
    assert samples["kimivl_http_errors_total", "invalid_value"] == 1


def test_what_is_missing_is_named_with_what_to_install() -> None:
    with pytest.raises(UnsupportedError, match="needs not_there, of the extra `serve`: pip "):
        check_installed(("json", "not_there"))
    ask = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from runtime.server.__main__ import main\n"
        "sys.exit(main(['nowhere', '--port', '0']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the server needs uvicorn, of the extra `serve`: pip ")
    assert done.stderr.count("\n") == 1


def test_the_way_in_loads_nothing_of_the_extra() -> None:
    ask = (
        "import sys, runtime.server.__main__, runtime.server.serving, commands.serve\n"
        "print(sorted({'starlette', 'uvicorn', 'prometheus_client', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_listener_says_that_it_speaks_tcp() -> None:
    """Else asyncio leaves Nagle's algorithm on, and answers on kept connections take 40 ms more."""
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_names_of_other_forms_are_refused_at_once() -> None:
    with pytest.raises(InputError) as found:
        ServerOptions(
            model_names=("a",),
            image_hosts=("http://x/y", "a.example", "a.example:8080", "[::1]:80"),
            cors_origins=("example.org", "https://a.example", "http://b.example:3000", "*"),
        )
    assert "2 problems" in str(found.value)
    assert "--image-host: expected HOST or HOST:PORT, found 'http://x/y'" in str(found.value)
    assert "--cors-origin: expected https://HOST or http://HOST:PORT, found 'example.org'" in str(
        found.value
    )


def test_a_file_of_keys_may_have_a_mark_and_remarks_and_names_bad_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_bytes("\ufeffone\n  # of the second team\ntwo\n".encode())
    path.chmod(0o600)
    keys = ApiKeys.load(path)
    assert keys.allow("Bearer one")
    assert keys.allow("Bearer two")
    assert not caplog.records
    path.chmod(0o644)
    ApiKeys.load(path)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        f"warning: other users may read {path}"
    ]
    path.write_text("one\ntwo # of alice\n")
    with pytest.raises(InputError, match="line 2: a key is letters"):
        ApiKeys.load(path)
