import shutil
from pathlib import Path

import pytest

from benchmarks.cpu.native import compile_program, run_step
from runtime.errors import KimiVLError, UnsupportedError

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


@needs_gcc
def test_a_program_is_compiled_again_when_its_source_is_newer(tmp_path: Path) -> None:
    source, program = tmp_path / "answer.c", tmp_path / "answer"
    for text in ("first", "second"):
        source.write_text(f'#include <stdio.h>\nint main(void) {{ puts("{text}"); }}\n')
        compile_program(program, "gcc", source, [], libraries=[])
        assert run_step([str(program)]) == f"{text}\n"
    before = program.stat().st_mtime_ns
    compile_program(program, "gcc", source, [], libraries=[])
    assert program.stat().st_mtime_ns == before


@needs_gcc
def test_a_source_that_does_not_compile_leaves_no_program(tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("int main(void) { return nothing; }\n")
    with pytest.raises(KimiVLError, match="nothing"):
        compile_program(tmp_path / "wrong", "gcc", source, [], libraries=[])
    assert list(tmp_path.iterdir()) == [source]


def test_a_program_that_is_not_installed_is_named() -> None:
    with pytest.raises(UnsupportedError, match="no-such-compiler is needed"):
        run_step(["no-such-compiler", "--version"])
