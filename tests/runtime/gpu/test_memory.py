"""Memory of an engine: all of it is given back, whatever became of the device."""

import pytest

from runtime.cuda import CudaError
from runtime.engine.gpu.memory import Memory
from tests.executing_trt import HostDevice


def test_one_piece_is_given_back_alone_and_the_rest_together() -> None:
    device = HostDevice()
    memory = Memory(device)
    first, *_ = [memory.allocate(8) for _ in range(3)]
    memory.free(first)
    assert len(device.blocks) == 2
    memory.free_all()
    assert not device.blocks


def test_what_another_has_reserved_is_not_ours_to_give_back() -> None:
    device = HostDevice()
    foreign = device.allocate(8)
    memory = Memory(device)
    with pytest.raises(KeyError):
        memory.free(foreign)
    memory.free_all()
    assert list(device.blocks) == [foreign]


def test_a_lost_device_does_not_keep_an_engine_from_ending() -> None:
    class Lost(HostDevice):
        def free(self, address: int) -> None:
            self.calls.append(address)
            raise CudaError("cuMemFree_v2", 719, "unspecified launch failure")

        def __init__(self) -> None:
            super().__init__()
            self.calls: list[int] = []

    device = Lost()
    memory = Memory(device)
    for _ in range(2):
        memory.allocate(8)
    memory.free_all()
    memory.free_all()
    assert len(device.calls) == 1
