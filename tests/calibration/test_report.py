"""The report: what it says, that it is one file alone, and what a browser makes of it."""

import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from calibration.data.conversations import DataOptions
from calibration.price.distance import Reference
from calibration.price.gate import GateLimits
from calibration.report.charts import Bar, BarChart
from calibration.report.findings import part_of
from calibration.report.heat_map import Scale
from calibration.report.markup import Html, element
from calibration.report.numbers import number, percent, size
from calibration.report.page import checkpoint_name
from calibration.stage import CalibrateOptions, calibrate_checkpoint
from examples.nano.score import HERE
from export.checkpoint.reader import Checkpoint
from export.graphs import plan_graphs
from export.quantised.places import places
from export.recipe.reading import load_recipe
from export.recipe.recipe import Budget
from export.stage import Calibrated, ExportOptions
from runtime.errors import GateError
from tests.calibration.report_inputs import Told, make_quality, make_told, write

NUM_LAYERS, NUM_EXPERTS = 27, 64
MAX_BYTES = 2_000_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Reader(HTMLParser):
    """Collects what a page shows, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.loaded: list[str] = []
        self.text = ""
        self.feed(page)
        self.loaded += re.findall(r"(?:url\(|@import\s)\s*[\"']?([^\"')\s;]+)", page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        loading = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
        self.loaded += [value or "" for name, value in attrs if name in loading]

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def foreign(self) -> list[str]:
        """What is not in the page itself."""
        return [url for url in self.loaded if not url.startswith(("data:image/png;base64,", "#"))]


@pytest.fixture
def told(tmp_path: Path) -> list[Told]:
    return make_told(tmp_path)


def text_of(page: str) -> str:
    return " ".join(Reader(page).text.split())


def test_the_price_stands_beside_its_budget(told: list[Told], tmp_path: Path) -> None:
    text = text_of(write(tmp_path / "r.html", told, make_quality(told)))
    assert "some-checkpoint in nvfp4" in text
    assert "nvfp4 passed: on held-out samples it loses no more than its budget allows." in text
    assert "Judged on 16 held-out samples and 48 positions" in text
    assert "mean KL (nats)0.0235at most 0.1515.6 %✓ within" in text
    assert "99th percentile of KL (nats)0.457" in text
    assert "top-1 agreement98.8 %at least 93 %" in text
    assert "exact match before, in fp3288.9 %exact match after87.5 %" in text
    assert "layer_020.310" in text
    assert "layer_01: 0.248" in text


def test_a_refusal_gives_every_reason(told: list[Told], tmp_path: Path) -> None:
    quality = make_quality(told)
    quality["graphs"]["head"]["recipes"]["nvfp4"]["price"]["kl_mean"] = 0.3
    one = text_of(write(tmp_path / "r.html", told, quality, problems=["mean KL 0.3 is too much"]))
    assert "nvfp4 did not pass: mean KL 0.3 is too much." in one
    assert "mean KL (nats)0.300at most 0.15200 %✗ over" in one
    two = text_of(write(tmp_path / "r.html", told, quality, problems=["first", "second"]))
    assert "did not pass, for 2 reasons: first second" in two.replace("first", " first ")


def test_values_that_are_not_finite_are_said_and_not_drawn(
    told: list[Told], tmp_path: Path
) -> None:
    quality = make_quality(told)
    quality["graphs"]["layer_02"]["recipes"]["nvfp4"]["error"] = math.inf
    price = quality["graphs"]["head"]["recipes"]["nvfp4"]["price"]
    price["kl_mean"] = price["samples"][9]["kl"] = math.nan
    page = write(tmp_path / "r.html", told, quality, problems=["not finite"])
    text = text_of(page)
    assert "layer_02not finite" in text
    assert "mean KL (nats)not finiteat most 0.15not finite✗ over" in text
    assert text.index("Sample 10KL not finite") < text.index("Sample 1KL 0.100")
    assert not re.search(r'="(nan|inf)', page)


def test_user_text_is_never_markup(tmp_path: Path) -> None:
    hostile = '<script>alert("1")</script> & <img src=x onerror=1> </style> \ud800 &lt;'
    told = [Told(question=hostile, reply=(1, 6, 8), kl=0.1, differs=((2, 7),))]
    quality = make_quality(told) | {"checkpoint": hostile}
    page = write(tmp_path / "r.html", told, quality, problems=[hostile])
    seen = Reader(page)
    assert seen.tags["script"] == seen.tags["img"] == seen.tags["b"] == 0
    shown = hostile.replace("\ud800", "?")
    assert seen.text.count(shown) == 4  # title, heading, verdict, question
    assert "one <b>six</b> & ∅" in seen.text  # the marked token of fp32 has no text
    assert "one <b>six</b> & ↵" in seen.text


def test_the_page_loads_nothing(told: list[Told], tmp_path: Path) -> None:
    page = write(tmp_path / "r.html", told, make_quality(told))
    seen = Reader(page)
    assert seen.foreign == []
    assert seen.tags["img"] == 12
    assert "://" not in page
    assert "default-src &#x27;none&#x27;" in page
    assert seen.tags["script"] == seen.tags["link"] == 0


@pytest.mark.parametrize(
    "planted",
    [
        '<img src="//a/b.png">',
        '<a href="https://a">x</a>',
        "<style>a{background:url(b.png)}</style>",
    ],
)
def test_a_planted_link_is_found(planted: str) -> None:
    assert len(Reader(planted).foreign) == 1


def test_equal_inputs_give_equal_bytes(told: list[Told], tmp_path: Path) -> None:
    first = write(tmp_path / "a.html", told, make_quality(told))
    assert write(tmp_path / "b.html", told, make_quality(told)) == first


def test_every_expert_of_a_full_size_model_has_its_cells(told: list[Told], tmp_path: Path) -> None:
    quality = make_quality(told, num_layers=NUM_LAYERS, num_experts=NUM_EXPERTS, tokens=25)
    page = write(tmp_path / "r.html", told, quality)
    layers = [
        one["observed"]["experts"]
        for one in quality["graphs"].values()
        if "experts" in one.get("observed", {})
    ]
    totals = [sum(pair) for one in layers for pair in zip(one["text"], one["image"], strict=True)]
    rare = sum(total < GateLimits().min_tokens_per_expert for total in totals)
    assert len(totals) == (NUM_LAYERS - 1) * NUM_EXPERTS
    assert len(re.findall(r"<title>layer_\d\d, expert \d+: [\d,]+ text tokens", page)) == len(
        totals
    )
    assert len(re.findall(r"<title>layer_\d\d, expert \d+: [\d,]+ image tokens", page)) == len(
        totals
    )
    assert page.count(", below the minimum</title>") == 2 * rare > 0
    assert page.count('class="rare"') == 2 * rare + 1  # the legend
    tokens = quality["graphs"]["layer_05"]["observed"]["experts"]["image"][63]
    assert f"layer_05, expert 63: {tokens:,} image tokens" in page
    assert f"experts with fewer than 32 tokens{rare} of 1,664" in text_of(page)
    assert len(page) < MAX_BYTES


def test_choices_of_a_search_are_shown_if_there_was_one(told: list[Told], tmp_path: Path) -> None:
    quality = make_quality(told)
    assert "Sensitivity" not in text_of(write(tmp_path / "r.html", told, quality))
    tried = {"part": "experts", "kl": 0.03, "top1": 0.97, "exact_match_loss": 0.0}
    quality["choices"] = [
        {**tried, "format": "int4/32", "active_bytes": 12_340_000.0, "chosen": True},
        {**tried, "format": "int4/128", "active_bytes": 11e6, "chosen": False},
    ]
    text = text_of(write(tmp_path / "r.html", told, quality))
    assert "expertsint4/320.030020.0 %97.0 %12.3 MB✓ chosen" in text
    assert "expertsint4/1280.030020.0 %97.0 %11.0 MB" in text


def test_a_changed_token_is_marked_in_both_lines(told: list[Told], tmp_path: Path) -> None:
    page = write(tmp_path / "r.html", told, make_quality(told))
    assert "one <mark>two </mark>three " in page
    assert "one <mark>four </mark>three " in page
    text = text_of(page)
    assert "6 of 16 samples have a token that changed." in text
    titles = re.findall(r"<h4>Sample (\d+)", page)
    assert titles == ["1", "2", "3", "4", "5", "6", "7", "8", "9", "11", "12", "14"]
    assert "reply in the set" not in text


def test_the_reply_is_shown_where_fp32_writes_another(tmp_path: Path) -> None:
    told = [Told(question="x", reply=(1, 2), kl=0.1, fp32=(1, 5), differs=((0, 3),))]
    text = text_of(write(tmp_path / "r.html", told, make_quality(told)))
    assert "reply in the setone two fp32 writesone five nvfp4 writesthree five" in text


def test_the_middle_of_a_long_reply_is_left_out(tmp_path: Path) -> None:
    told = [Told(question="x" * 900, reply=(1,) * 300, kl=0.1, differs=((299, 2),))]
    text = text_of(write(tmp_path / "r.html", told, make_quality(told)))
    assert "… 139 tokens …" in text
    assert "x … (100 more characters)" in text


def test_samples_and_reference_must_fit(told: list[Told], tmp_path: Path) -> None:
    short = Reference(tokens=torch.ones(47, 1).long(), logs=torch.zeros(47, 1))
    with pytest.raises(ValueError, match="48 positions are judged, and fp32 has 47"):
        write(tmp_path / "r.html", told, make_quality(told), reference=short)


def test_a_recipe_without_experts_or_replies_has_fewer_rows(
    told: list[Told], tmp_path: Path
) -> None:
    quality = make_quality(told, num_layers=1)
    price = quality["graphs"]["head"]["recipes"]["nvfp4"]["price"]
    del price["exact_match"], price["exact_match_reference"]
    text = text_of(write(tmp_path / "r.html", told, quality))
    assert "exact match" not in text
    assert "Experts" not in text


def test_parts_are_those_of_the_modules() -> None:
    config = Checkpoint.open(HERE / "checkpoint").config
    plans = plan_graphs(config, torch.float32, range(config.decoder.num_layers), taps=False)
    found = [place for plan in plans for place in places(plan.build())]
    assert {place.part for place in found} == {
        "vision", "projector", "attention", "kv_b", "dense_mlp", "experts", "shared_experts", "head"
    }  # fmt: skip
    assert {place.parameter: part_of(place.parameter) for place in found} == {
        place.parameter: place.part for place in found
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.0234567, "0.0235"), (12.345, "12.3"), (1234.5, "1,234"),
        (1.7276e-6, "1.73·10⁻⁶"), (2.5e7, "2.50·10⁷"), (9.996e-5, "1.00·10⁻⁴"),
        (math.nan, "not finite"), (-0.5, "-0.500"),
    ],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100 %"), (0.99, "99.0 %"), (0.999401, "99.9 %"), (0.99996, "99.996 %"), (0.0, "0 %"),
        (4e-7, "4.00·10⁻⁵ %"), (1.5, "150 %"),
    ],
)  # fmt: skip
def test_a_share_is_never_rounded_up_to_all(share: float, text: str) -> None:
    assert percent(share) == text.replace(" ", "\u00a0")


def test_sizes_are_decimal() -> None:
    shown = [size(num_bytes) for num_bytes in (0, 999.0, 2.5e6, 3.14159e10)]
    assert shown == [
        text.replace(" ", "\u00a0") for text in ("0 bytes", "999 bytes", "2.50 MB", "31.4 GB")
    ]


@pytest.mark.parametrize(
    "counts", [[0, 0], [1], [5, 5, 5], [0, 3, 40, 977], [90_000 + 7 * i for i in range(1664)]]
)
def test_every_count_is_in_the_range_of_its_shade(counts: list[int]) -> None:
    scale = Scale.of(counts)
    ranges = [text.replace(",", "").split(" to ") for text in scale.ranges()]
    for tokens in counts:
        shade = scale.shade(tokens)
        assert (shade == 0) == (tokens == 0)
        if shade:
            assert int(ranges[shade - 1][0]) <= tokens <= int(ranges[shade - 1][-1])


@pytest.mark.parametrize("largest", [0.0, 1e-7, 0.0021, 0.19, 0.2, 0.7, 1.0, 36.0])
def test_no_bar_is_longer_than_the_axis(largest: float) -> None:
    chart = BarChart(bars=[Bar(label="a", value=largest / 3, largest=largest)], axis="x", title="t")
    assert 1 <= chart.num_steps <= 6
    assert chart.step * chart.num_steps >= largest * 0.999
    assert re.search(r"\d*[125]e", f"{chart.step:.0e}")


def test_elements_escape_text_and_attributes() -> None:
    made = element("p", "<a>", Html("<b>"), title='"<', hidden=True, lang=None, data_x=0.5)
    assert made == '<p title="&quot;&lt;" hidden data-x="0.5">&lt;a&gt;<b></p>'


def test_a_checkpoint_in_the_hubs_cache_has_its_repositorys_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--some--name" / "snapshots" / "0f3a"
    assert checkpoint_name(folder) == "owner/some--name"
    assert checkpoint_name(tmp_path / "mine") == "mine"


def test_the_stage_writes_it_whether_the_recipe_passes_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []

    def keep(*_: object, calibrated: Calibrated) -> None:
        kept.extend(calibrated.files)

    def calibrate(**budget: float) -> str:
        limits = GateLimits(max_fallback_share=1, budget=Budget(**budget))
        options = CalibrateOptions(export=export, data=data, limits=limits)
        calibrate_checkpoint(Checkpoint.open(HERE / "checkpoint"), tmp_path, options)
        return text_of(path.read_text(encoding="utf-8"))

    monkeypatch.setattr("calibration.stage.export_checkpoint", keep)
    path = tmp_path / "calibration" / "report.html"
    export = ExportOptions(recipe=load_recipe("fp8"), layers=(0, 1))
    data = DataOptions(data="nano-calibration", held_out="nano", max_samples=3, max_held_out=2)
    with pytest.raises(GateError, match=re.escape(f"recipe fp8 ({path} shows more): ")):
        calibrate(kl=0)
    assert "fp8 did not pass: mean KL" in text_of(path.read_text(encoding="utf-8"))
    text = calibrate(kl=1, top1=0, exact_match=1)
    assert "fp8 passed" in text
    assert "Limits that were set for this run: max_fallback_share, budget." in text
    assert "◁think▷" in text
    assert "calibration/report.html" in kept
