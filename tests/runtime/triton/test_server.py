"""The generated repository in a real server: what clients of Triton see."""

import base64
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from runtime import Sampling, Session
from runtime.prompt.images import load_image
from tests.runtime.triton.clients import MODEL, ask, ask_all
from tests.runtime.triton.conftest import NUM_SLOTS
from tests.runtime.triton.watching import PATIENCE_S, settled, wait_for, wait_for_count
from tests.triton_server import TritonServer
from tool import app

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
PICTURE = ROOT / "examples" / "numbers.png"
QUESTION = "Add the numbers."


@pytest.fixture(scope="module")
def session(nano_artifact: Path) -> Session:
    return Session.open(nano_artifact, num_threads=1)


@pytest.fixture
def http(server: TritonServer) -> Iterator[httpclient.InferenceServerClient]:
    with httpclient.InferenceServerClient(server.http) as client:
        yield client


def picture_url() -> str:
    return "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()


def messages(text: str, *, image: object = None) -> list[dict[str, Any]]:
    shown = [] if image is None else [{"type": "image", "image": image}]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def said_alone(session: Session, asked: list[dict[str, Any]]) -> tuple[int, ...]:
    request = session.request(session.encode(asked), Sampling.greedy())
    list(session.stream(request))
    assert request.result is not None
    return request.result.ids


def post(server: TritonServer, path: str, **body: object) -> list[str]:
    """Send JSON as curl would and give the lines that come back."""
    request = urllib.request.Request(
        f"http://{server.http}/v2/models/{MODEL}/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return [line for line in answer.read().decode().splitlines() if line]


def test_a_streamed_answer_has_the_ids_that_run_gives(
    server: TritonServer, session: Session
) -> None:
    expected = said_alone(session, messages(QUESTION, image=PICTURE))
    answer = ask(
        server.grpc, prompt=QUESTION.encode(), images=[PICTURE.read_bytes()], temperature=0.0
    )
    assert answer.ids == expected
    assert answer.text == "85"
    assert answer.thinking.startswith("47+38")
    assert len(answer.responses) > 10
    assert answer.finish_reasons == [""] * (len(answer.responses) - 1) + ["stop"]
    usage = json.loads(answer.responses[-1]["usage"][0])
    assert (usage["prompt_tokens"], usage["new_tokens"]) == (31, len(expected))


def test_messages_may_hold_pictures_as_parts_or_as_data_urls(
    server: TritonServer, session: Session
) -> None:
    expected = said_alone(session, messages(QUESTION, image=PICTURE))
    asked = messages(QUESTION, image="")
    del asked[0]["content"][0]["image"]
    placed = ask(server.grpc, messages=json.dumps(asked).encode(), images=[PICTURE.read_bytes()])
    inside = ask(server.grpc, messages=json.dumps(messages(QUESTION, image=picture_url())).encode())
    assert placed.ids == inside.ids == expected


def test_curl_gets_a_whole_answer_and_a_stream(server: TritonServer) -> None:
    (whole,) = post(server, "generate", prompt=QUESTION, images=[picture_url()], stream=False)
    assert json.loads(whole)["answer"] == "85"
    assert json.loads(whole)["finish_reason"] == "stop"
    lines = post(server, "generate_stream", prompt=QUESTION, images=[picture_url()])
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(event["answer"] for event in events) == "85"
    assert len(events) > 10


def test_what_the_page_says_works(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "triton.md").read_text()
    page = page.replace("localhost:8000", server.http).replace("localhost:8001", server.grpc)
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(code, {})
    assert capsys.readouterr().out == "85"
    lines = re.findall(r"^curl .+generate.+$", page, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert '"finish_reason":"stop"' in done.stdout


def test_two_clients_at_once_get_what_each_gets_alone(
    server: TritonServer, session: Session
) -> None:
    texts = [f"Add {first} and {first * 3 + 1}." for first in range(3, 9)]
    expected = [said_alone(session, messages(text)) for text in texts]
    questions = [{"prompt": text.encode(), "temperature": 0.0} for text in texts]
    with ThreadPoolExecutor(2) as clients:
        first, second = clients.map(
            lambda asked: ask_all(server.grpc, asked), (questions, questions[::-1])
        )
    assert [answer.ids for answer in first] == expected
    assert [answer.ids for answer in second] == expected[::-1]


def test_a_second_turn_reuses_what_the_first_left_in_its_slot(server: TritonServer) -> None:
    asked = messages("What is in this picture?", image=picture_url())
    first = ask(server.grpc, messages=json.dumps(asked).encode())
    asked += [{"role": "assistant", "content": first.text}, *messages("Add them.")]
    second = ask(server.grpc, messages=json.dumps(asked).encode())
    usage = [json.loads(one.responses[-1]["usage"][0]) for one in (first, second)]
    assert usage[1]["reused_tokens"] >= usage[0]["prompt_tokens"] - 1


def test_sampling_values_and_stop_strings_arrive(server: TritonServer) -> None:
    sampled = [
        ask(server.grpc, prompt=b"Say something.", temperature=2.0, seed=7, max_new_tokens=12)
        for _ in range(2)
    ]
    other = ask(server.grpc, prompt=b"Say something.", temperature=2.0, seed=8, max_new_tokens=12)
    assert sampled[0].ids == sampled[1].ids != other.ids
    assert sampled[0].finish_reasons[-1] in ("length", "stop")
    stopped = ask(server.grpc, prompt=b"Count.", regex=b"[0-9]{40}z", stop=[b"9", b"z"])
    assert stopped.finish_reasons[-1] == "stop"
    assert re.fullmatch("[0-8]{0,40}", stopped.text)
    assert stopped.ids
    logged = ask(server.grpc, prompt=b"Hello.", logprobs=1, max_new_tokens=3)
    numbers = [one for response in logged.responses for one in response["token_logprobs"]]
    assert len(numbers) == 3
    assert max(numbers) <= 0


def test_an_answer_follows_a_json_schema(server: TritonServer) -> None:
    schema = {"type": "object", "properties": {"odd": {"type": "boolean"}}, "required": ["odd"]}
    answer = ask(
        server.grpc,
        prompt=b"Add 3 and 4.",
        json_schema=json.dumps(schema | {"additionalProperties": False}).encode(),
    )
    assert answer.finish_reasons[-1] == "stop"
    assert json.loads(answer.text)["odd"] in (True, False)


def test_plain_infer_over_http_is_refused_by_the_server(
    http: httpclient.InferenceServerClient,
) -> None:
    prompt = httpclient.InferInput("prompt", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([b"Hello."], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="decoupled"):
        http.infer(MODEL, [prompt])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either `messages` or `prompt`, found neither"),
        ({"prompt": b"a", "messages": b"[]"}, "either `messages` or `prompt`, found both"),
        ({"prompt": b"\xff"}, "prompt: not UTF-8 at byte 0"),
        ({"messages": b"[{"}, "messages: 1 problem: not JSON"),
        ({"messages": b'[{"role": "robot", "content": "a"}]'}, "unknown role 'robot'"),
        ({"messages": b"[]", "system": b"a"}, "system: belongs to `prompt`"),
        (
            {"messages": json.dumps(messages("a", image="/etc/hostname")).encode()},
            "files are not read here",
        ),
        ({"prompt": b"a", "images": [b"no image"]}, "no image of a known format"),
        ({"messages": json.dumps(messages("a")).encode(), "images": [b"x"]}, "1 were sent"),
        ({"messages": rb'[{"role": "\ud800", "content": "a"}]'}, "unknown role"),
        ({"prompt": b"a", "images": [b"no image"] * 33}, "33 images are over the model's limit"),
        ({"prompt": b"a", "temperature": -1.0}, "temperature: expected 0"),
        ({"prompt": b"a", "max_new_tokens": 0}, "max_new_tokens: expected an integer"),
        ({"prompt": b"word " * 4000}, "tokens"),
        ({"prompt": b"a", "regex": b"a", "grammar": b"b"}, "follow one of them"),
        ({"prompt": b"a", "regex": b"("}, "regex"),
        ({"prompt": b"a", "json_schema": b"3"}, "expected an object"),
    ],
)
def test_a_wrong_request_is_an_error_that_says_why(
    values: dict[str, Any], message: str, server: TritonServer
) -> None:
    answer = ask(server.grpc, **(values or {"max_new_tokens": 4}))
    assert answer.responses == []
    assert re.search(message, answer.error), answer.error


def test_after_wrong_requests_the_model_answers_and_has_all_its_slots(
    server: TritonServer, http: httpclient.InferenceServerClient
) -> None:
    assert ask(server.grpc, temperature=1.0).error
    with pytest.raises(urllib.error.HTTPError):
        post(server, "generate", stream=False)
    assert ask(server.grpc, prompt=b"Hello.", max_new_tokens=2).ids
    settled(server)
    wait_for_count(server, "errors_total", 'kind="InputError",model="kimi_vl"', least=2)
    assert http.is_server_ready()
    assert http.is_model_ready(MODEL)
    wait_for(server, num_free_slots=NUM_SLOTS, failures_in_a_row=0)


def test_bench_serve_counts_what_the_server_counts(server: TritonServer) -> None:
    before, words = settled(server), ["--requests", "12", "-c", "6", "--warmup", "0", "--json"]
    done = CliRunner().invoke(app, ["bench", "serve", f"grpc://{server.grpc}/{MODEL}", *words])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["requests"] == {"sent": 12, "answered": 12}
    after = settled(server)
    for name, counted in (("new", "new_tokens_total"), ("cached", "reused_tokens_total")):
        assert found["tokens"][name] == after[counted] - before[counted]
    hurried = ["--timeout", "0.001", "--requests", "2"]
    done = CliRunner().invoke(app, ["bench", "serve", f"grpc://{server.grpc}", *hurried])
    assert "no request was answered; the first: timeout" in str(done.exception)


def test_the_server_says_what_the_model_takes_and_counts_its_requests(
    server: TritonServer, http: httpclient.InferenceServerClient
) -> None:
    assert http.is_server_live()
    metadata = http.get_model_metadata(MODEL)
    assert {one["name"] for one in metadata["inputs"]} >= {"prompt", "messages", "images", "seed"}
    assert metadata["outputs"][0] == {"name": "answer", "datatype": "BYTES", "shape": [1]}
    before = settled(server)
    assert before["num_slots"] == NUM_SLOTS
    answer = ask(server.grpc, prompt=b"Hello.", max_new_tokens=4)
    counted = before["new_tokens_total"] + len(answer.ids)
    after = wait_for(server, num_used_slots=0, new_tokens_total=counted)
    assert after["queue_seconds_count"] == before["queue_seconds_count"] + 1
    (statistics,) = http.get_inference_statistics(MODEL)["model_stats"]
    assert statistics["inference_stats"]["success"]["count"] > 0


def test_the_pipeline_gives_the_rows_that_the_engine_gives(
    http: httpclient.InferenceServerClient, session: Session
) -> None:
    image = session.encoder.rule.patchify(load_image(PICTURE))
    tensor = httpclient.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([PICTURE.read_bytes()], dtype=np.object_))
    answer = http.infer("kimi_vl_encoder", [tensor])
    assert answer.as_numpy("grid").tolist() == list(image.grid)
    expected = session.engine.encode(image)
    assert np.abs(answer.as_numpy("features") - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_pipeline_refuses_what_is_no_image_and_names_a_model_that_is_not_loaded(
    http: httpclient.InferenceServerClient,
) -> None:
    tensor = httpclient.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"no image"], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="image"):
        http.infer("kimi_vl_encoder", [tensor])
    http.load_model("lonely")
    http.unload_model("kimi_vl_projector")
    try:
        tensor.set_data_from_numpy(np.array([PICTURE.read_bytes()], dtype=np.object_))
        with pytest.raises(InferenceServerException, match="kimi_vl_projector"):
            http.infer("lonely", [tensor])
    finally:
        http.load_model("kimi_vl_projector")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instance_group": [{"count": 2, "kind": "KIND_CPU"}]}, "2 instances: one holds"),
        ({"manifest_sha256": "0" * 64}, "the repository was made for 0000"),
        ({"artifact": "elsewhere"}, "is the artifact mounted there"),
        ({"target": "rtx:sm89"}, "not built for target 'rtx:sm89'"),
    ],
)
def test_a_model_that_cannot_run_is_refused_with_the_reason(
    change: dict[str, Any],
    message: str,
    server: TritonServer,
    http: httpclient.InferenceServerClient,
    repository: Path,
) -> None:
    config = http.get_model_config(MODEL)
    if "instance_group" in change:
        config |= change
    else:
        for name, value in change.items():
            config["parameters"][name] = {"string_value": value}
    config["name"] = "other"
    folder = repository / "other" / "1"
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "model.py").write_bytes((repository / MODEL / "1" / "model.py").read_bytes())
        (folder / "artifact").symlink_to(repository / MODEL / "1" / "artifact")
        source = (repository / MODEL / "config.pbtxt").read_text()
        (folder.parent / "config.pbtxt").write_text(source.replace("kimi_vl", "other"))
    with pytest.raises(InferenceServerException, match=message):
        http.load_model("other", config=json.dumps(config))
    assert not http.is_model_ready("other")
    assert ask(server.grpc, prompt=b"Hello.", max_new_tokens=2).ids
