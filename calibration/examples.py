"""Sets of conversations with known answers: JSON lines, pictures beside them.

    {"messages": [{"role": "user", "content": [{"type": "image", "image": "0001.png"},
     {"type": "text", "text": "Add them."}]}], "answer": "19", "kind": "add"}

Messages have OpenAI's form; image paths are relative to the file and may not leave its folder.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import InputError, KimiVLError, describe_problems
from runtime.files import resolve_inside

_EXAMPLES = Path(__file__).parents[1] / "examples"
BUILT_IN = {
    "nano": _EXAMPLES / "nano" / "heldout" / "questions.jsonl",
    "nano-calibration": _EXAMPLES / "nano" / "calibration" / "questions.jsonl",
}
"""Sets that have a name."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One conversation and what should come next."""

    messages: tuple[dict[str, Any], ...]
    """In OpenAI's form; images as absolute paths."""
    answer: str
    kind: str
    """Examples of one kind are counted together; `all` where the file names none."""

    @property
    def image_paths(self) -> tuple[Path, ...]:
        """Pictures in the order of the conversation."""
        return tuple(Path(part["image"]) for part in _image_parts(self.messages))


def load_examples(name: str) -> list[Example]:
    """Read a built-in set or a JSONL file.

    Raises:
        InputError: there is no such set or file, or lines are malformed; all are listed.
    """
    path = BUILT_IN.get(name, Path(name))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"set {name!r}: neither a readable JSONL file nor one of {', '.join(BUILT_IN)}"
        ) from error
    examples, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            examples.append(_example(json.loads(line), path.parent.absolute()))
        except (ValueError, KeyError, TypeError, AttributeError, KimiVLError) as error:
            problems.append(f"line {number}: {_reason(error)}")
    if problems or not examples:
        raise InputError(describe_problems(str(path), problems or ["it holds no examples"]))
    return examples


def _example(fields: dict[str, Any], folder: Path) -> Example:
    messages = tuple(dict(message) for message in fields["messages"])
    for part in _image_parts(messages):
        part["image"] = str(resolve_inside(folder, part["image"]))
    return Example(
        messages=messages, answer=str(fields["answer"]), kind=str(fields.get("kind", "all"))
    )


def _image_parts(messages: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """List the content parts that name a picture by path."""
    contents = [message["content"] for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part for part in parts if part.get("type") == "image"]


def _reason(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)
