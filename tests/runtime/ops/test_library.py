"""The library of custom ops is found, trusted only as it was built here, and can be left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import UnsupportedError
from runtime.ops import build
from runtime.ops import library as ops_library
from runtime.ops.library import find_library

KERNEL_TESTS = [
    Path(__file__).with_name(f"test_{name}.py")
    for name in ("block_linear", "block_experts", "cached_attention", "router")
]

INSTRUCTION_SETS = ["plain", "avx2", "avx512", "amx"]
"""Each has what those before it have."""


@pytest.fixture
def copied(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library and its stamp in a folder of their own."""
    place, stamp = tmp_path / library.name, tmp_path / ops_library.STAMP.name
    place.write_bytes(library.read_bytes())
    stamp.write_bytes(ops_library.STAMP.read_bytes())
    monkeypatch.setattr(ops_library, "LIBRARY", place)
    monkeypatch.setattr(ops_library, "STAMP", stamp)
    return place


def test_a_library_is_found_beside_its_sources(copied: Path) -> None:
    assert find_library() == copied


def test_without_a_library_there_is_none(copied: Path) -> None:
    copied.unlink()
    assert find_library() is None


def test_it_names_the_instructions_that_it_uses(copied: Path) -> None:
    assert ops_library.instruction_set(copied) in INSTRUCTION_SETS


def test_a_switch_leaves_it_out(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMIVL_OPS", "off")
    assert copied.exists()
    assert find_library() is None


def test_an_altered_library_is_refused(copied: Path) -> None:
    copied.write_bytes(copied.read_bytes() + b"\0")
    with pytest.raises(UnsupportedError, match=r"not what was built here.*ops\.build"):
        find_library()


def test_a_library_of_other_sources_is_refused(copied: Path) -> None:
    stamp = json.loads(ops_library.STAMP.read_text())
    ops_library.STAMP.write_text(json.dumps({**stamp, "sources": "0" * 64}))
    with pytest.raises(UnsupportedError, match="built from other sources"):
        find_library()
    assert copied.exists()


def test_without_a_compiler_the_build_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnsupportedError, match=r"no-such-compiler found; install a C\+\+ compiler"):
        build.build_library()


def test_a_stopped_build_leaves_the_library_and_ends_in_one_line(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> list[Path]:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_compile_all", stop)
    assert build.main() == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert find_library() == copied


def test_a_build_that_cannot_be_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.main() == 1
    assert capsys.readouterr().err.startswith("error: custom ops: none of no-such-compiler")


@pytest.mark.parametrize("isa", INSTRUCTION_SETS[:-1])
def test_lower_instruction_sets_pass_the_same_tests(library: Path, isa: str) -> None:
    best = ops_library.instruction_set(library)
    if INSTRUCTION_SETS.index(isa) >= INSTRUCTION_SETS.index(best):
        pytest.skip(f"the kernels' own tests use {best}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *map(str, KERNEL_TESTS)],
        env={**os.environ, "KIMIVL_OPS_ISA": isa},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
