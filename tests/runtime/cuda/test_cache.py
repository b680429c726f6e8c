"""Slots that move when one of them grows or shrinks: what is in them stays."""

import numpy as np
import pytest

from runtime.artifact.records import CacheRecord, CacheTensor
from runtime.engine.cuda.cache import SlotCache
from runtime.engine.gpu.memory import Memory
from runtime.errors import CapacityError
from runtime.limits import Limits
from tests.executing_trt import HostDevice

RECORD = CacheRecord(
    tensors={
        "cache": CacheTensor(dtype="float32", width=3),
        "other": CacheTensor(dtype="float16", width=5),
    }
)
TYPES = {"cache": np.float32, "other": np.float16}


class Filled:
    """A cache, and beside it what every slot holds."""

    def __init__(self, slots: int, capacity: int, least_rows: int) -> None:
        limits = Limits(
            max_tokens=capacity,
            max_input_tokens=capacity,
            max_slots=slots,
            max_patches=4,
            prefill_chunk=capacity,
        )
        self.device = HostDevice()
        self.cache = SlotCache(
            ["layer_00", "layer_01"], RECORD, limits, Memory(self.device), least_rows=least_rows
        )
        self.lengths = [0] * slots
        self.values = {
            (layer, name, slot): np.zeros((0, one.width), dtype=TYPES[name])
            for layer in ("layer_00", "layer_01")
            for name, one in RECORD.tensors.items()
            for slot in range(slots)
        }
        self.random = np.random.default_rng(1)

    def grow(self, slot: int, length: int, new: int) -> None:
        """Write some tokens behind the first ones of a slot."""
        self.cache.fit(slot, [length + new])
        self.lengths[slot] = length + new
        for key, old in self.values.items():
            layer, name, where = key
            if where == slot:
                more = self.random.standard_normal((new, old.shape[1])).astype(old.dtype)
                self.values[key] = np.concatenate([old[:length], more])
                begin = (
                    self.cache.addresses(layer, slot)[name]
                    + length * old[0:1].dtype.itemsize * (old.shape[1])
                )
                self.device.write(begin, more)

    def check(self) -> None:
        for (layer, name, slot), values in self.values.items():
            address = self.cache.addresses(layer, slot)[name]
            found = self.device.array(address, values.shape, TYPES[name])
            np.testing.assert_array_equal(found, values, err_msg=f"{layer} {name} {slot}")


@pytest.mark.parametrize(("capacity", "least_rows"), [(64, 4), (50, 4), (37, 8), (6, 8), (9, 8)])
def test_every_slot_keeps_what_it_holds_however_they_grow_and_shrink(
    capacity: int, least_rows: int
) -> None:
    filled = Filled(3, capacity, least_rows)
    random = np.random.default_rng(capacity)
    seen = set()
    for _ in range(200):
        slot = int(random.integers(3))
        length = int(random.integers(filled.lengths[slot] + 1))
        if random.random() < 0.5:
            length = filled.lengths[slot]
        new = int(random.integers(min(capacity - length, 12) + 1))
        filled.grow(slot, length, new)
        filled.check()
        seen.add(filled.cache.rows)
        assert max(filled.lengths) <= filled.cache.rows <= capacity
    assert len(seen) >= (3 if capacity > 30 else 1)


def test_slots_lie_close_while_they_are_short() -> None:
    filled = Filled(3, 64, 4)
    first, second = (filled.cache.addresses("layer_00", slot)["cache"] for slot in (0, 1))
    assert second - first == 4 * 3 * 4  # rows, width, bytes
    filled.grow(2, 0, 17)
    assert filled.cache.rows == 32


def test_a_prefix_is_copied_and_a_cleared_slot_is_zero() -> None:
    filled = Filled(3, 64, 4)
    filled.grow(0, 0, 20)
    filled.grow(1, 0, 5)
    filled.cache.copy_prefix(0, 2, 11)
    for layer, name, slot in list(filled.values):
        if slot == 2:
            filled.values[layer, name, slot] = filled.values[layer, name, 0][:11]
    filled.check()
    filled.cache.clear(0)
    for name, one in RECORD.tensors.items():
        address = filled.cache.addresses("layer_01", 0)[name]
        assert not filled.device.array(address, (32, one.width), TYPES[name]).any()


def test_nothing_is_left_behind_a_text_when_slots_have_moved() -> None:
    filled = Filled(3, 64, 4)
    for slot, length in ((0, 3), (1, 17), (2, 2), (1, 3), (0, 30)):
        filled.grow(slot, 0, length)
    for name, one in RECORD.tensors.items():
        for slot, length in enumerate(filled.lengths):
            address = filled.cache.addresses("layer_01", slot)[name]
            rows = filled.device.array(address, (32, one.width), TYPES[name])
            assert not rows[length:].any()


def test_a_prefix_longer_than_a_slot_is_a_mistake_of_ours() -> None:
    filled = Filled(3, 64, 4)
    with pytest.raises(AssertionError, match="5 tokens of slots of 4"):
        filled.cache.copy_prefix(0, 1, 5)


def test_memory_that_is_not_there_is_refused_at_once() -> None:
    limits = Limits(
        max_tokens=64, max_input_tokens=64, max_slots=3, max_patches=4, prefill_chunk=64
    )
    with pytest.raises(CapacityError, match="bytes more are needed"):
        SlotCache(["layer_00"], RECORD, limits, Memory(HostDevice(memory_bytes=2000)))
