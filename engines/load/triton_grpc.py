"""A Triton server with the model that `tool.py triton` writes, asked over gRPC."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from queue import Empty, SimpleQueue
from time import monotonic
from types import ModuleType
from typing import Any

import numpy as np

from runtime.errors import KimiVLError, UnsupportedError
from runtime.triton import tensors

from .asked import Question
from .endpoint import Heard, RequestFailedError, Used, Wishes

_MICROSECONDS = 1_000_000
_CONNECT_S = 10.0


class TritonEndpoint:
    """Sends requests to a decoupled model, each in a stream of its own."""

    def __init__(self, address: str, model: str, wishes: Wishes) -> None:
        """Ask whether the model is ready.

        Raises:
            UnsupportedError: the client's package is not installed.
            KimiVLError: no server answers there, or it has no such model.
        """
        try:
            import tritonclient.grpc as client
        except ImportError as error:
            raise UnsupportedError(
                "grpc:// addresses need Triton's client: pip install 'tritonclient[grpc]'"
            ) from error
        self._client: ModuleType = client
        self._address, self._model, self._wishes = address, model, wishes
        try:
            with closing(client.InferenceServerClient(address)) as server:
                is_ready = server.is_model_ready(model, client_timeout=_CONNECT_S)
        except client.InferenceServerException as error:
            raise KimiVLError(f"grpc://{address}: no Triton server answers: {error}") from error
        if not is_ready:
            raise KimiVLError(f"grpc://{address}: model {model!r} is not there, or not ready")

    @property
    def description(self) -> dict[str, str]:
        """Name the address, its dialect and the model."""
        return {
            "url": f"grpc://{self._address}",
            "dialect": "triton",
            "model": self._model,
            "tokens_by": "ids",
        }

    def ask(self, question: Question, hear: Callable[[Heard], None]) -> Used:
        """Send one request and read its answer to the end.

        Raises:
            RequestFailedError: there is no whole answer.
        """
        try:
            return self._ask(question, hear)
        except self._client.InferenceServerException as error:
            raise RequestFailedError("connection", str(error.message())) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RequestFailedError("malformed", f"{type(error).__name__}: {error}") from error

    def _ask(self, question: Question, hear: Callable[[Heard], None]) -> Used:
        told: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        with closing(self._client.InferenceServerClient(self._address)) as server:
            server.start_stream(lambda result, error: told.put((result, error)))
            server.async_stream_infer(
                self._model,
                self._inputs(question),
                enable_empty_final_response=True,
                timeout=int(self._wishes.timeout_s * _MICROSECONDS),
            )
            try:
                return self._read(told, hear)
            finally:
                server.stop_stream(cancel_requests=True)

    def _read(self, told: "SimpleQueue[tuple[Any, Any]]", hear: Callable[[Heard], None]) -> Used:
        usage = ""
        for result in self._results(told):
            if result.get_response().outputs:
                texts = [_text(result, one) for one in (tensors.ANSWER, tensors.THINKING)]
                num_tokens = len(result.as_numpy(tensors.TOKEN_IDS.name))
                if num_tokens or any(texts):
                    hear(Heard(num_tokens=num_tokens, has_text=any(texts)))
                usage = _text(result, tensors.USAGE) or usage
        if not usage:
            raise RequestFailedError("cut", "the stream ended without its usage")
        counts = json.loads(usage)
        return Used(
            prompt_tokens=counts["prompt_tokens"],
            cached_tokens=counts["reused_tokens"],
            new_tokens=counts["new_tokens"],
        )

    def _results(self, told: "SimpleQueue[tuple[Any, Any]]") -> Iterator[Any]:
        """Yield results up to the last one."""
        end = monotonic() + self._wishes.timeout_s
        while True:
            try:
                result, error = told.get(timeout=max(0.0, end - monotonic()))
            except Empty:
                raise RequestFailedError(
                    "timeout", f"no whole answer within {self._wishes.timeout_s:g} s"
                ) from None
            if error is not None:
                kind = str(error.status() or "error").removeprefix("StatusCode.")
                raise RequestFailedError(kind, str(error.message()))
            yield result
            if result.get_response().parameters["triton_final_response"].bool_param:
                return

    def _inputs(self, question: Question) -> list[Any]:
        return [
            self._input(tensors.MESSAGES, np.array([json.dumps(question.messages)], np.object_)),
            self._input(_MAX_NEW_TOKENS, np.array([self._wishes.max_new_tokens], np.int32)),
        ]

    def _input(self, tensor: tensors.Tensor, value: Any) -> Any:  # noqa: ANN401  the client's class
        kind = {"TYPE_STRING": "BYTES"}.get(tensor.data_type, tensor.data_type[len("TYPE_") :])
        made = self._client.InferInput(tensor.name, list(value.shape), kind)
        made.set_data_from_numpy(value)
        return made


(_MAX_NEW_TOKENS,) = (one for one in tensors.LIMITS if one.name == "max_new_tokens")


def _text(result: Any, tensor: tensors.Tensor) -> str:  # noqa: ANN401  the client's class
    text: bytes = result.as_numpy(tensor.name)[0]
    return text.decode()
