"""Short ways to ask a server over gRPC."""

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

MODEL = "kimi_vl"
PATIENCE_S = 60.0
_TYPES = {bytes: "BYTES", bool: "BOOL", float: "FP64"}
_INTEGERS = {"seed": "INT64"}


@dataclass(kw_only=True)
class Answer:
    """What one request came to."""

    responses: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(one for response in self.responses for one in response["token_ids"])

    @property
    def text(self) -> str:
        return "".join(response["answer"][0].decode() for response in self.responses)

    @property
    def thinking(self) -> str:
        return "".join(response["thinking"][0].decode() for response in self.responses)

    @property
    def finish_reasons(self) -> list[str]:
        return [response["finish_reason"][0].decode() for response in self.responses]


def inputs(**values: Any) -> list[grpcclient.InferInput]:  # noqa: ANN401  of any of the types
    """Tensors by the types of what they hold; a value that is no list is a list of one."""
    found = []
    for name, value in values.items():
        listed = value if isinstance(value, list) else [value]
        kind = _TYPES.get(type(listed[0]) if listed else bytes, _INTEGERS.get(name, "INT32"))
        dtype = np.object_ if kind == "BYTES" else kind.lower().replace("fp", "float")
        tensor = grpcclient.InferInput(name, [len(listed)], kind)
        tensor.set_data_from_numpy(np.array(listed, dtype=dtype))
        found.append(tensor)
    return found


class Stream:
    """One client and what it was told."""

    def __init__(self, address: str) -> None:
        self.client = grpcclient.InferenceServerClient(address)
        self._told: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(lambda result, error: self._told.put((result, error)))

    def send(self, request_id: str = "", *, timeout_us: int | None = None, **values: Any) -> None:  # noqa: ANN401
        """Ask; the answer comes by `events`."""
        self.client.async_stream_infer(
            MODEL,
            inputs(**values),
            request_id=request_id,
            enable_empty_final_response=True,
            timeout=timeout_us,
        )

    def events(self) -> Iterator[tuple[str, dict[str, Any] | str, bool]]:
        """Give the id of a request, outputs or an error, and whether it was the last."""
        while True:
            result, error = self._told.get(timeout=PATIENCE_S)
            if error is not None:
                yield "", str(error), True
                continue
            response = result.get_response()
            outputs = {one.name: result.as_numpy(one.name).tolist() for one in response.outputs}
            is_last = response.parameters["triton_final_response"].bool_param
            yield response.id, outputs, is_last

    def answer(self) -> Answer:
        """Take the one answer that was asked for."""
        found = Answer()
        for _, outputs, is_last in self.events():
            if isinstance(outputs, str):
                found.error = outputs
            elif outputs:
                found.responses.append(outputs)
            if is_last:
                return found
        raise AssertionError("the stream has no end")

    def close(self, *, cancel: bool = False) -> None:
        self.client.stop_stream(cancel_requests=cancel)
        self.client.close()


@contextmanager
def streaming(address: str) -> Iterator[Stream]:
    stream = Stream(address)
    try:
        yield stream
    finally:
        stream.close()


def ask(address: str, **values: Any) -> Answer:  # noqa: ANN401  of any of the types
    """Ask once, in a stream of its own."""
    with streaming(address) as stream:
        stream.send(**values)
        return stream.answer()


def ask_all(address: str, questions: Sequence[dict[str, Any]]) -> list[Answer]:
    """Ask many at once in one stream; answers in the order of the questions."""
    found = [Answer() for _ in questions]
    with streaming(address) as stream:
        for number, question in enumerate(questions):
            stream.send(str(number), **question)
        left = len(questions)
        for request_id, outputs, is_last in stream.events():
            assert not isinstance(outputs, str), outputs
            if outputs:
                found[int(request_id)].responses.append(outputs)
            left -= is_last
            if left == 0:
                return found
    raise AssertionError("the stream has no end")
