"""Sets of conversations with known answers: JSON lines, pictures beside them.

    {"messages": [{"role": "user", "content": [{"type": "image", "image": "0001.png"},
     {"type": "text", "text": "Add them."}]}], "answer": "19", "kind": "add"}

Messages have OpenAI's form; image paths are relative to the file and may not leave its folder.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.errors import InputError, KimiVLError, describe_problems
from runtime.files import resolve_inside
from runtime.prompt.messages import Image, ImageSource, Message, Text, parse_messages

_EXAMPLES = Path(__file__).parents[2] / "examples"
BUILT_IN = {
    "nano": _EXAMPLES / "nano" / "heldout" / "questions.jsonl",
    "nano-calibration": _EXAMPLES / "nano" / "calibration" / "questions.jsonl",
}
"""Sets that have a name."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One conversation and what should come next."""

    messages: tuple[Message, ...]
    """Parsed; pictures as absolute paths inside the set's folder, or as data URLs."""
    answer: str
    reply: str = ""
    """All that the model is to write, thinking included; calibration runs over it."""
    kind: str
    """Examples of one kind are counted together; `all` where the file names none."""

    @property
    def image_paths(self) -> tuple[Path, ...]:
        """Pictures in the order of the conversation."""
        parts = [part for message in self.messages for part in message.parts]
        sources = [part.source for part in parts if isinstance(part, Image)]
        return tuple(source for source in sources if isinstance(source, Path))

    @property
    def turn(self) -> int:
        """Number of the reply in the conversation, from 1."""
        return 1 + sum(message.role == "assistant" for message in self.messages)

    @property
    def question(self) -> str:
        """The text of the last message."""
        return " ".join(part.text for part in self.messages[-1].parts if isinstance(part, Text))


def load_examples(name: str, *, with_answers: bool = True) -> list[Example]:
    """Read a built-in set or a JSONL file.

    Args:
        name: of the set or file.
        with_answers: refuse examples without a known answer.

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
    folder = path.parent.absolute()
    examples, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            examples.append(_example(json.loads(line), folder, with_answer=with_answers))
        except (ValueError, KeyError, TypeError, AttributeError, KimiVLError) as error:
            problems.append(f"line {number}: {_reason(error)}")
    if problems or not examples:
        raise InputError(describe_problems(str(path), problems or ["it holds no examples"]))
    return examples


def _example(fields: dict[str, Any], folder: Path, *, with_answer: bool) -> Example:
    messages = list(parse_messages(fields["messages"]))
    reply = str(fields.get("reply", ""))
    if not reply and messages[-1].role == "assistant":
        last = messages.pop()
        reply = "".join(part.text for part in last.parts if isinstance(part, Text))
    return Example(
        messages=tuple(_inside(message, folder) for message in messages),
        answer=str(fields["answer"] if with_answer else fields.get("answer", "")),
        reply=reply,
        kind=str(fields.get("kind", "all")),
    )


def _inside(message: Message, folder: Path) -> Message:
    """Resolve a message's picture paths, none of which may leave the folder."""
    parts = (
        replace(part, source=resolve_inside(folder, str(part.source)))
        if isinstance(part, Image) and _is_path(part.source)
        else part
        for part in message.parts
    )
    return replace(message, parts=tuple(parts))


def _is_path(source: ImageSource) -> bool:
    return isinstance(source, str | Path) and not str(source).startswith("data:")


def _reason(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)
