"""The loop that reads memory: it reads all of it, and measures more than nothing."""

from pathlib import Path

import numpy as np

from engines.measure.bandwidth import _library_reader, measure_bandwidth


def test_every_word_is_read(library: Path) -> None:
    words = np.random.default_rng(0).integers(0, 1 << 62, 8 * 5000, dtype=np.uint64)
    aligned = words[-words.ctypes.data % 64 // 8 :][: 8 * 4998]
    read = _library_reader(library)
    assert read(aligned) == np.bitwise_xor.reduce(aligned)
    aligned[8 * 4997] ^= np.uint64(1)
    assert read(aligned) == np.bitwise_xor.reduce(aligned)


def test_bandwidth_is_read_by_the_library_where_it_is(library: Path) -> None:
    assert library.exists()
    found = measure_bandwidth(threads=2, buffer_bytes=64 << 20, passes=2)
    assert found.reader == "kernels"
    assert min(found.samples) > 0.01
