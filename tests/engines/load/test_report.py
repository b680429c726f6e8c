"""Figures that follow from samples, and their picture."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from engines.load.endpoint import Used
from engines.load.picture import draw_picture
from engines.load.report import MEASURES, LoadReport, parse_limits
from engines.load.run import Load, Sample
from runtime.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"


ANSWERED = Used(prompt_tokens=100, cached_tokens=40, new_tokens=11)


def sample(number: int, *, num_images: int = 0, failure: str | None = None) -> Sample:
    """Request number n comes after n seconds, waits n / 10, takes 1 / 100 for each token."""
    first = number + number / 10
    return Sample(
        num_images=num_images,
        due_s=float(number),
        sent_s=float(number),
        end_s=first + 0.1,
        heard_s=() if failure else (first, first + 0.1),
        tokens_s=() if failure else (first,) + (first + 0.1,) * 10,
        used=None if failure else ANSWERED,
        failure=failure,
        message="the reason" if failure else "",
    )


def report(*samples: Sample, limits: dict[str, float] | None = None) -> LoadReport:
    return LoadReport(
        endpoint={"url": "http://host", "dialect": "openai", "model": "<kimi>"},
        load=Load(concurrency=2),
        max_new_tokens=16,
        limits=limits or {},
        samples=samples,
    )


def mixed(limits: dict[str, float] | None = None) -> LoadReport:
    answered = [sample(number, num_images=number % 2) for number in range(10)]
    return report(*answered, sample(10, failure="429"), sample(11, failure="429"), limits=limits)


def test_every_figure_follows_from_the_samples() -> None:
    found = mixed().fields()
    assert found["requests"] == {"sent": 12, "answered": 10}
    assert found["failures"] == {"429": 2}
    assert found["duration_s"] == pytest.approx(11 + 1.1 + 0.1)
    assert found["requests_per_s"] == pytest.approx(10 / found["duration_s"])
    assert found["tokens"] == {"prompt": 1000, "cached": 400, "new": 110}
    assert found["new_tokens_per_s"] == pytest.approx(110 / found["duration_s"])
    first = found["measures"]["time_to_first_token_s"]
    waits = [number / 10 for number in range(10)]
    # Ranks 4.5, 8.1, 8.91 of 0 to 9, between neighbours.
    for name, expected in (("p50", 0.45), ("p90", 0.81), ("p99", 0.891)):
        assert first["all"][name] == pytest.approx(expected)
    assert first["all"]["mean"] == pytest.approx(sum(waits) / 10)
    assert first["with images"]["mean"] == pytest.approx(0.5)
    assert first["text alone"]["mean"] == pytest.approx(0.4)
    assert found["measures"]["time_per_token_s"]["all"]["mean"] == pytest.approx(0.01)
    assert [one["failure"] for one in found["samples"]] == [None] * 10 + ["429"] * 2


def test_goodput_counts_answers_within_all_limits() -> None:
    assert mixed().num_good == 10
    assert mixed({"time_to_first_token_s": 0.45}).num_good == 5
    both = mixed({"time_to_first_token_s": 0.45, "total_s": 0.25})
    assert both.num_good == 2
    assert both.fields()["goodput"]["requests_per_s"] == pytest.approx(2 / both.duration_s)


def test_an_answer_without_what_a_limit_asks_for_is_not_good() -> None:
    textless = replace(sample(0), heard_s=(), tokens_s=())
    limits = {"time_to_first_token_s": 9.0}
    assert report(textless, limits=limits).num_good == 0
    assert report(textless, limits={"total_s": 9.0}).num_good == 1
    one_part = replace(sample(0), tokens_s=sample(0).tokens_s[:1])
    token = {"time_per_token_s": 9.0}
    assert report(one_part, limits=token).num_good == 0
    one_token = replace(one_part, used=replace(ANSWERED, new_tokens=1))
    assert report(one_token, limits=token).num_good == 1


def test_what_was_sent_late_is_counted_and_what_was_asked_stands_beside_the_load() -> None:
    late = replace(sample(1), sent_s=1.5)
    found = replace(report(sample(0), late), asked={"data": "nano"}).fields()
    assert found["late"] == {"requests": 1, "most_s": 0.5}
    assert [one["sent_s"] for one in found["samples"]] == [0.0, 1.5]
    assert found["load"]["data"] == "nano"


def test_a_measure_that_no_request_has_is_left_out() -> None:
    short = Sample(
        num_images=0,
        due_s=0.0,
        sent_s=0.0,
        end_s=1.0,
        heard_s=(0.5,),
        tokens_s=(0.5,),
        used=Used(prompt_tokens=1, cached_tokens=0, new_tokens=1),
        failure=None,
    )
    found = report(short).fields()["measures"]
    assert found["time_per_token_s"]["all"] is None
    assert found["total_s"]["with images"] is None
    assert found["total_s"]["all"]["mean"] == 1.0
    assert ElementTree.fromstring(draw_picture(report(short))).tag == f"{SVG}svg"


def test_limits_are_read_and_wrong_ones_named() -> None:
    assert parse_limits(None) == {}
    assert parse_limits("ttft=0.5, total=20") == {"time_to_first_token_s": 0.5, "total_s": 20.0}
    for text in ("first=1", "ttft", "ttft=soon", "ttft=nan", "total=inf", "token=-1", "ttft=0"):
        with pytest.raises(InputError, match=f"expected ttft=SECONDS, token=.*found '{text}'"):
            parse_limits(text)
    with pytest.raises(InputError, match=r"2 problems: expected .*'ttft=1e9'; total comes twice"):
        parse_limits("ttft=1e9,total=1,total=2")


def test_the_picture_has_a_line_for_each_group_and_a_mark_for_each_limit() -> None:
    drawn = ElementTree.fromstring(draw_picture(mixed({"total_s": 1.0})))
    paths = drawn.findall(f"{SVG}path")
    classes = [path.get("class", "") for path in paths]
    lines = [one for one in classes if one.startswith("line")]
    assert lines == ["line s0", "line s1", "line s2"] * (len(MEASURES) + 1)  # and the legend
    assert classes.count("limit") == 1
    (title, *_) = drawn.findall(f"{SVG}text")
    assert title.text == "<kimi>: 12 requests, 2 at a time, 2 failed"
    first = next(path.get("d", "") for path in paths if path.get("class") == "line s0")
    heights = [float(part.partition("V")[2]) for part in first.split("H")[1:]]
    assert heights == sorted(heights, reverse=True)
    assert len(heights) == 10
