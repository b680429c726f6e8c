"""Printing: nothing is wrapped, cut, or taken for markup where no terminal reads."""

import json

import pytest

from commands import output


def test_a_table_in_a_pipe_keeps_long_cells_and_brackets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [("[int8]", "deep/" * 60), ("b\x1b", "x")]
    output.table(("name", "path"), rows)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert [line.split() for line in captured.out.splitlines()] == [
        ["name", "path"],
        ["[int8]", "deep/" * 60],
        ["b\N{REPLACEMENT CHARACTER}", "x"],
    ]
    assert all(line == line.rstrip() for line in captured.out.splitlines())


def test_facts_are_for_people_or_exact(capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "size_bytes": 1_234_567,
        "layers": [0, 1, 2, 5],
        "largest_error": 1.23456e-7,
        "taps": False,
        "targets": [],
        "absent": None,
    }
    output.facts(values, as_json=False)
    assert [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()] == [
        ["size", "         1.23 MB"],
        ["layers", "       0-2, 5"],
        ["largest error", "1.23e-07"],
        ["taps", "         no"],
        ["targets", "      none"],
    ]
    output.facts(values, as_json=True)
    assert json.loads(capsys.readouterr().out) == values


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (16_400_000_000, "16.40 GB")],
)
def test_sizes_have_the_unit_that_fits(count: int, text: str) -> None:
    assert output.size(count) == text
