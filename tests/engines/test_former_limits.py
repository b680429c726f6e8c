"""What a build leaves out while its target is in no manifest."""

import errno
from pathlib import Path

import pytest

from engines.former_limits import forget_limits, note_limits
from runtime.errors import KimiVLError
from runtime.limits import Limits

LIMITS = Limits(max_tokens=100, max_input_tokens=60, max_slots=3, max_patches=16, prefill_chunk=8)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which removing fails, whether there is something or not."""

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", unlink)


@pytest.mark.usefixtures("read_only")
def test_nothing_is_forgotten_where_nothing_was_noted(tmp_path: Path) -> None:
    forget_limits(tmp_path, "cuda")


@pytest.mark.usefixtures("read_only")
def test_a_note_that_cannot_be_removed_is_told_in_one_line(tmp_path: Path) -> None:
    note_limits(tmp_path, "cuda", LIMITS)
    with pytest.raises(KimiVLError, match="limits"):
        forget_limits(tmp_path, "cuda")
