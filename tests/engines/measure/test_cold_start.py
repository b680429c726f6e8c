"""A fresh process up to its first token, and how its failures are told."""

from pathlib import Path

import pytest

from engines.measure.cold_start import measure_cold_start
from engines.measure.images import ImageSize
from runtime.errors import KimiVLError

OPTIONS = {"target": "cpu", "num_threads": 1}


def test_the_parts_of_a_start_add_up_and_an_image_is_in_it(artifact: Path) -> None:
    found = measure_cold_start(artifact, ImageSize(56, 84), OPTIONS)
    assert found.image_tokens == 6
    assert found.prompt_tokens > 6
    parts = (found.start_s, found.open_s, found.patch_s, found.vision_s, found.prefill_s)
    assert min(parts) > 0
    assert found.choose_s >= 0
    fields = found.fields()
    assert fields["ready_s"] == pytest.approx(found.start_s + found.open_s)
    first = found.patch_s + found.vision_s + found.prefill_s + found.choose_s
    assert fields["first_token_s"] == pytest.approx(first)


def test_a_start_without_an_image_asks_in_words(artifact: Path) -> None:
    assert measure_cold_start(artifact, None, OPTIONS).image_tokens == 0


def test_a_process_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(KimiVLError, match=r"could not answer: .*nowhere: no such folder") as caught:
        measure_cold_start(tmp_path / "nowhere", None, OPTIONS)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
