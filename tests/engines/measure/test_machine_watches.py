"""What is read of the machine: bandwidth, memory, page cache, what others take."""

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engines.measure import bandwidth
from engines.measure.bandwidth import measure_bandwidth
from engines.measure.disturbance import CpuTime, Disturbance, DisturbanceWatch
from engines.measure.machine import last_cache_bytes
from engines.measure.memory import MemoryWatch, resident
from engines.measure.page_cache import look_at
from runtime.errors import CapacityError

MIB = 1 << 20
BURN = "import time\nend = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass"


def test_every_pass_over_the_buffer_is_a_sample() -> None:
    found = measure_bandwidth(threads=1, buffer_bytes=64 * MIB, passes=3)
    assert found.reader == "numpy", "tests leave the library of custom ops out"
    assert len(found.samples) == 3
    assert 0.01 < min(found.samples) <= found.median <= max(found.samples) < 10_000
    assert found.plus(found).samples == found.samples * 2


def test_a_pass_reads_every_byte_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def read(piece: np.ndarray) -> None:
        assert (piece == 1).all(), "memory that is not written to is no memory"
        seen.append((piece.ctypes.data, piece.nbytes))

    monkeypatch.setattr(bandwidth, "_numpy_reader", read)
    measure_bandwidth(threads=2, buffer_bytes=100 * MIB, passes=1)
    begins, sizes = zip(*sorted(seen), strict=True)
    assert sum(sizes) == 96 * MIB
    ends = [begin + size for begin, size in zip(begins, sizes, strict=True)]
    assert list(begins[1:]) == ends[:-1]


def test_a_machine_without_memory_for_a_buffer_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "available_bytes", lambda: 16 * MIB)
    with pytest.raises(CapacityError, match="a buffer of 8388608 bytes"):
        measure_bandwidth(threads=1)


def test_the_peak_of_memory_that_is_given_back_is_kept() -> None:
    before = resident().anonymous
    with MemoryWatch() as watch:
        memory = mmap.mmap(-1, 128 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.write(bytes(128 * MIB))
        time.sleep(0.3)
        memory.close()
    assert watch.peak.anonymous >= before + 120 * MIB
    assert resident().anonymous < watch.peak.anonymous - 100 * MIB


def test_pages_of_mapped_files_are_counted_apart(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(64 * MIB))
    before = resident()
    with MemoryWatch() as watch:
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        assert int(mapped[:: mmap.PAGESIZE].sum()) == 0
    assert watch.peak.file >= before.file + 60 * MIB
    assert watch.peak.anonymous < before.anonymous + 32 * MIB


def test_the_page_cache_holds_what_was_written_and_not_what_was_never_read(tmp_path: Path) -> None:
    warm, cold = tmp_path / "warm", tmp_path / "cold"
    warm.write_bytes(bytes(3 * MIB + 5))
    with cold.open("wb") as file:
        os.truncate(file.fileno(), 9 * MIB)
    assert look_at([warm]).share == 1.0
    assert look_at([cold]).share == 0.0
    both = look_at([warm, cold])
    assert (both.bytes, both.cached_bytes) == (12 * MIB + 5, 3 * MIB + 5)
    (tmp_path / "empty").touch()
    assert look_at([tmp_path / "empty"]).share == 1.0


def test_what_others_take_is_all_work_but_our_own() -> None:
    before = CpuTime(wall=10.0, busy=100.0, own=5.0, stolen=1.0)
    after = CpuTime(wall=14.0, busy=108.0, own=9.0, stolen=1.4)
    found = Disturbance.between(before, after)
    assert found.others_cores == pytest.approx(1.0)
    assert found.stolen_cores == pytest.approx(0.1)
    assert found.is_noticeable
    twice = found.plus(found)
    assert (twice.wall_s, twice.others_s) == pytest.approx((8.0, 8.0))


@pytest.mark.parametrize(("others", "is_noticeable"), [(0.3, False), (0.5, True)])
def test_a_tenth_of_a_core_is_allowed(others: float, *, is_noticeable: bool) -> None:
    assert Disturbance(wall_s=4.0, others_s=others).is_noticeable == is_noticeable
    assert not Disturbance(wall_s=0.01, others_s=0.02).is_noticeable, "a tick of the clock"


def test_a_process_that_burns_is_seen_and_our_own_work_is_not_counted() -> None:
    watch = DisturbanceWatch()
    with watch.timed():
        subprocess.run([sys.executable, "-c", BURN], check=True)
    assert watch.total.others_s > 0.2
    own = DisturbanceWatch()
    start = os.times()
    with own.timed():
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    spent = os.times()
    assert spent.user + spent.system - start.user - start.system >= 0.29
    busiest = own.total.wall_s * len(os.sched_getaffinity(0))
    assert own.total.others_s <= max(busiest - 0.2, 0.1)


def test_the_last_cache_is_the_largest(tmp_path: Path) -> None:
    for name, size in {"index0": "48K", "index2": "2048K", "index3": "32M"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
    assert last_cache_bytes(tmp_path) == 32 * MIB
    assert last_cache_bytes(tmp_path / "nothing") == 0
