"""What a server says of itself, waited for."""

import time

from tests.runtime.triton.conftest import NUM_SLOTS
from tests.triton_server import TritonServer

PATIENCE_S = 30.0


def wait_for(server: TritonServer, **expected: float) -> dict[str, float]:
    """Wait until metrics of the model have these values, and give all of them."""
    end = time.monotonic() + PATIENCE_S
    while True:
        found = {
            name.partition("{")[0].removeprefix("kimivl_"): value
            for name, value in server.scrape().items()
            if name.startswith("kimivl_")
        }
        if expected.items() <= found.items() or time.monotonic() > end:
            assert expected.items() <= found.items()
            return found
        time.sleep(0.1)


def settled(server: TritonServer) -> dict[str, float]:
    """Give the metrics of a model at rest; they are written twice a second."""
    time.sleep(1.1)
    return wait_for(server, num_free_slots=NUM_SLOTS)


def wait_for_count(server: TritonServer, name: str, labels: str, *, least: int) -> None:
    """Wait until a counter is that high: metrics are written one after the other."""
    end = time.monotonic() + PATIENCE_S
    key = f"kimivl_{name}{{{labels}}}"
    while (found := server.scrape().get(key, 0.0)) < least:
        assert time.monotonic() < end, f"{key} is {found:g}"
        time.sleep(0.1)
