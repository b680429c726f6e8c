"""The module that a server's stub gives, as far as our code uses it."""

from types import SimpleNamespace
from typing import Any

import numpy as np


class Error(Exception):
    """A `TritonError`."""

    INTERNAL, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, CANCELLED = range(5)

    def __init__(self, message: str, code: int) -> None:
        message.encode()  # as the server's does, which takes no lone surrogate
        super().__init__(message)
        self.code = code


class Metric:
    """One that can be looked at."""

    def __init__(self) -> None:
        self.value = 0.0
        self.increments: list[float] = []

    def set(self, value: float) -> None:
        self.value = value

    def increment(self, value: float) -> None:
        assert value > 0
        self.value += value
        self.increments.append(value)


class Family:
    """Keeps all metrics by name and labels."""

    COUNTER, GAUGE = "counter", "gauge"
    made: dict[tuple[str, frozenset[tuple[str, str]]], Metric]

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description.endswith(".")
        self.name, self.kind = name, kind

    def Metric(self, labels: dict[str, str]) -> Metric:
        return self.made.setdefault((self.name, frozenset(labels.items())), Metric())


class Sender:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.is_gone = self.is_broken = False
        self.num_broken_ends = 0

    def send(self, response: Any = None, flags: int = 0) -> None:  # noqa: ANN401
        if self.is_broken:
            raise RuntimeError("no shared memory is left")
        if flags and self.num_broken_ends:
            self.num_broken_ends -= 1
            raise RuntimeError("no \ud800 end")
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        return self.is_gone


def make_tensor(name: str, value: Any) -> Any:  # noqa: ANN401
    return SimpleNamespace(name=name, value=np.asarray(value).tolist())


def make_backend() -> Any:  # noqa: ANN401  stands for a module
    """Make one whose log and metrics can be read."""
    log: list[str] = []

    def write(text: str) -> None:
        text.encode()
        log.append(text)

    family = type("Family", (Family,), {"made": {}})
    return SimpleNamespace(
        TritonError=Error,
        Tensor=make_tensor,
        InferenceResponse=lambda output_tensors=(), error=None: SimpleNamespace(
            outputs={one.name: one.value for one in output_tensors}, error=error
        ),
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        MetricFamily=family,
        Logger=SimpleNamespace(log_error=write, log_info=write),
        log=log,
    )
