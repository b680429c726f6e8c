"""The report as a browser draws it, with no network and no script of its own."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.calibration.report_inputs import make_quality, make_told, write

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
OFFLINE = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
WIDTH, HEIGHT = 1200, 1600
NARROW = 500  # less than this no window can be
TIMEOUT_S = 90
MEASURE = """
<script>
addEventListener("load", () => {  // not before: a request counts when it has ended
  const box = (one) => { const b = one.getBoundingClientRect(); return [b.width, b.height]; };
  const all = (what) => [...document.querySelectorAll(what)];
  const found = {
    drawings: all("figure svg, .legend svg, .share svg").map(box),
    figures: all("figure svg").map(box),
    cells: all("figure rect[class^=h]").map(box),
    pictures: all("img").map((one) => [one.complete && one.naturalWidth, one.naturalHeight]),
    page: [document.documentElement.scrollWidth, innerWidth],
    hidden: all("h2, h3, table, dd").filter((one) => !one.getClientRects().length).length,
    requests: performance.getEntriesByType("resource").map((one) => one.name),
    back: getComputedStyle(document.body).backgroundColor,
  };
  document.title = JSON.stringify(found);
});
</script>
"""

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser on PATH: none of {', '.join(NAMES)} is installed"
)


def browse(page: Path, *words: str) -> str:
    profile = page.parent / "profile"
    command = [str(BROWSER), *OFFLINE, f"--user-data-dir={profile}", *words, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return done.stdout


def measure(page: Path, *words: str) -> dict[str, Any]:
    """Look at a copy that may run our script."""
    text = page.read_text(encoding="utf-8")
    copy = page.with_name("measured.html")
    free = re.sub(r"<meta http-equiv=.*?>", "", text, count=1)
    copy.write_text(free.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", browse(copy, "--dump-dom", *words))
    assert title is not None
    found: dict[str, Any] = json.loads(unescape(title[1]))
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a full-size model."""
    folder = tmp_path_factory.mktemp("report")
    told = make_told(folder)
    path = folder / "report.html"
    write(path, told, make_quality(told, num_layers=27, num_experts=64, tokens=25))
    return path


def test_all_figures_are_drawn_and_nothing_is_requested(page: Path) -> None:
    found = measure(page, f"--window-size={WIDTH},{HEIGHT}")
    assert len(found["figures"]) == 4
    assert len(found["cells"]) == 2 * 26 * 64
    assert all(width > 0 and height > 0 for width, height in found["drawings"])
    assert all(width >= 12 and height >= 12 for width, height in found["cells"])
    assert len(found["pictures"]) == 12
    assert all(0 < max(size) <= 256 for size in found["pictures"])
    assert found["hidden"] == 0
    assert found["page"] == [WIDTH, WIDTH]  # nothing is wider than the window
    assert [name for name in found["requests"] if not name.startswith("data:")] == []


def test_a_planted_request_and_a_planted_empty_figure_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "planted.html"
    page.write_text(
        "<meta http-equiv=x><body><img src='http://example.invalid/a.png'>"
        "<figure><svg width=0></svg></figure></body>",
        encoding="utf-8",
    )
    found = measure(page)
    assert found["requests"] == ["http://example.invalid/a.png"]
    assert found["figures"][0][0] == 0


def test_a_narrow_window_and_a_dark_one_are_served(page: Path) -> None:
    narrow = measure(page, f"--window-size={NARROW},{HEIGHT}")
    assert narrow["page"] == [NARROW, NARROW]
    assert all(width >= 12 for width, _ in narrow["cells"])  # wide figures scroll, not shrink
    dark = measure(page, "--blink-settings=preferredColorScheme=0")
    assert narrow["back"] == "rgb(255, 255, 255)"
    assert dark["back"] == "rgb(20, 24, 29)"


def test_the_page_itself_is_drawn_in_its_colours(page: Path) -> None:
    picture = page.with_name("report.png")
    browse(page, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}")
    with Image.open(picture) as drawn:
        assert drawn.size == (WIDTH, HEIGHT)
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(maxcolors=2**20) or []}
    # The style of the page holds under its own policy: verdict, bars, track.
    assert {(233, 246, 236), (47, 111, 181), (223, 229, 235)} <= colours
