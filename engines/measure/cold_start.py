"""From nothing to the first token about an image, in a process of its own.

    python -m engines.measure.cold_start ARTIFACT '{"target": "cpu", ...}'

prints one JSON object. `measure_cold_start` starts that process and reads it. Clocks of both are
the system's monotonic one, so that the start of Python counts.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from runtime.errors import KimiVLError

if TYPE_CHECKING:
    from runtime.session import Session

    from .images import ImageSize

_ROOT = Path(__file__).resolve().parents[2]
QUESTION = "What is in this picture?"
_LINES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Seconds until a process is ready, and from a picture to its first token."""

    start_s: float
    """Python and the packages."""
    open_s: float
    """The artifact checked, tokenizer and engine loaded."""
    patch_s: float
    """The picture shrunk, padded and cut; the prompt encoded."""
    vision_s: float
    """The vision encoder, and the embedding of the prompt."""
    prefill_s: float
    choose_s: float
    prompt_tokens: int
    image_tokens: int

    @property
    def ready_s(self) -> float:
        """From the start of the process until it takes a prompt."""
        return self.start_s + self.open_s

    @property
    def first_token_s(self) -> float:
        """From the picture's pixels to the first token, of a ready process."""
        return self.patch_s + self.vision_s + self.prefill_s + self.choose_s

    def fields(self) -> dict[str, Any]:
        """Name the figures, sums included."""
        return {**asdict(self), "ready_s": self.ready_s, "first_token_s": self.first_token_s}


def measure_cold_start(
    folder: Path, size: "ImageSize | None", options: dict[str, Any]
) -> ColdStart:
    """Start a process that opens an artifact and answers about one image, or without one.

    Args:
        folder: the artifact.
        size: of the image.
        options: keyword arguments of `Session.open`.

    Raises:
        KimiVLError: the process failed; what it said last is in the message.
    """
    wishes = {"started": monotonic(), "size": size, "options": options}
    command = [sys.executable, "-m", __name__, str(folder.resolve()), json.dumps(wishes)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " | ".join(done.stderr.strip().splitlines()[-_LINES_SHOWN:])
        raise KimiVLError(f"{folder}: a fresh process could not answer: {last}")
    return ColdStart(**json.loads(done.stdout))


def first_token(
    open_session: Callable[[], "Session"], size: "ImageSize | None", started: float
) -> ColdStart:
    """Open a session and answer with one token.

    Args:
        open_session: does it.
        size: of the image.
        started: when the process was asked for, by the monotonic clock.
    """
    from runtime.generation.sampling import Sampling
    from runtime.generation.stopping import GenerationLimits

    from .images import random_image

    imported = monotonic()
    session = open_session()
    ready = monotonic()
    picture = [] if size is None else [{"type": "image", "image": random_image(size)}]
    content = [*picture, {"type": "text", "text": QUESTION}]
    pictured = monotonic()  # making random pixels is not part of any request
    prompt = session.encode([{"role": "user", "content": content}])
    encoded = monotonic()
    request = session.request(prompt, Sampling.greedy(), GenerationLimits(max_new_tokens=1))
    for _ in session.stream(request):
        pass
    assert request.result is not None, "the stream has ended"
    usage, timings = request.result.usage, request.result.timings
    return ColdStart(
        start_s=imported - started,
        open_s=ready - imported,
        patch_s=encoded - pictured,
        vision_s=timings.encode_s,
        prefill_s=timings.prefill_s,
        choose_s=timings.time_to_first_token_s - timings.encode_s - timings.prefill_s,
        prompt_tokens=usage.prompt_tokens,
        image_tokens=usage.image_tokens,
    )


def main(folder: str, wishes_text: str) -> int:
    """Answer in this process and print the figures; a user's error ends in one line."""
    from runtime.session import Session

    from .images import ImageSize

    wishes = json.loads(wishes_text)
    size = None if wishes["size"] is None else ImageSize(*wishes["size"])
    try:
        found = first_token(
            lambda: Session.open(folder, **wishes["options"]), size, wishes["started"]
        )
    except KimiVLError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
