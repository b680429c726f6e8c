"""Inputs, outputs and parameters of the models: what `config.pbtxt` declares and the code reads.

Does not know: the server, numpy types of its tensors.
"""

from dataclasses import dataclass
from typing import Literal

DataType = Literal["TYPE_STRING", "TYPE_BOOL", "TYPE_INT32", "TYPE_INT64", "TYPE_FP32", "TYPE_FP64"]
"""As `config.pbtxt` writes it; strings may be any bytes."""

ONE = (1,)
MANY = (-1,)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output of a model."""

    name: str
    data_type: DataType
    dims: tuple[int, ...] = ONE
    is_optional: bool = False


MESSAGES = Tensor(name="messages", data_type="TYPE_STRING", is_optional=True)
PROMPT = Tensor(name="prompt", data_type="TYPE_STRING", is_optional=True)
SYSTEM = Tensor(name="system", data_type="TYPE_STRING", is_optional=True)
IMAGES = Tensor(name="images", data_type="TYPE_STRING", dims=MANY, is_optional=True)

SAMPLING = (
    Tensor(name="temperature", data_type="TYPE_FP64", is_optional=True),
    Tensor(name="top_k", data_type="TYPE_INT32", is_optional=True),
    Tensor(name="top_p", data_type="TYPE_FP64", is_optional=True),
    Tensor(name="min_p", data_type="TYPE_FP64", is_optional=True),
    Tensor(name="repetition_penalty", data_type="TYPE_FP64", is_optional=True),
    Tensor(name="seed", data_type="TYPE_INT64", is_optional=True),
    Tensor(name="logprobs", data_type="TYPE_INT32", is_optional=True),
)
"""Fields of `Sampling`, by their names."""

LIMITS = (
    Tensor(name="max_new_tokens", data_type="TYPE_INT32", is_optional=True),
    Tensor(name="max_thinking_tokens", data_type="TYPE_INT32", is_optional=True),
)
"""Fields of `GenerationLimits`, by their names."""
STOP = Tensor(name="stop", data_type="TYPE_STRING", dims=MANY, is_optional=True)

GRAMMARS = (
    Tensor(name="json_schema", data_type="TYPE_STRING", is_optional=True),
    Tensor(name="regex", data_type="TYPE_STRING", is_optional=True),
    Tensor(name="grammar", data_type="TYPE_STRING", is_optional=True),
)
"""What the answer has to follow; at most one."""

STREAM = Tensor(name="stream", data_type="TYPE_BOOL", is_optional=True)

INPUTS = (MESSAGES, PROMPT, SYSTEM, IMAGES, *SAMPLING, *LIMITS, STOP, *GRAMMARS, STREAM)

ANSWER = Tensor(name="answer", data_type="TYPE_STRING")
THINKING = Tensor(name="thinking", data_type="TYPE_STRING")
TOKEN_IDS = Tensor(name="token_ids", data_type="TYPE_INT64", dims=MANY)
LOGPROBS = Tensor(name="token_logprobs", data_type="TYPE_FP32", dims=MANY)
FINISH_REASON = Tensor(name="finish_reason", data_type="TYPE_STRING")
USAGE = Tensor(name="usage", data_type="TYPE_STRING")
TIMINGS = Tensor(name="timings", data_type="TYPE_STRING")

OUTPUTS = (ANSWER, THINKING, TOKEN_IDS, LOGPROBS, FINISH_REASON, USAGE, TIMINGS)

IMAGE = Tensor(name="image", data_type="TYPE_STRING")
GRID = Tensor(name="grid", data_type="TYPE_INT32", dims=(2,))

ARTIFACT = "artifact"
"""Parameter: the artifact's folder, absolute or beside `model.py`."""
MANIFEST_SHA256 = "manifest_sha256"
TARGET = "target"
MAX_QUEUED = "max_queued"
IMAGE_CACHE_BYTES = "image_cache_bytes"
MAX_IMAGES = "max_images"
CHUNK_BESIDE_DECODING = "chunk_beside_decoding"
THREADS = "threads"
RELEASE = "release"
"""Parameters of the conversational model."""

VISION_MODEL = "vision_model"
PROJECTOR_MODEL = "projector_model"
MAX_PATCHES = "max_patches"
"""Parameters of the image encoder."""
MODEL_FOLDER = "model"
"""Beside its `model.py`: the checkpoint's files that say how images are prepared."""
