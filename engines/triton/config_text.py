"""`config.pbtxt`: a message of protobuf's text format from plain values.

Source: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

import json
from collections.abc import Iterator, Mapping


class Symbol(str):
    """A value that is written without quotes: one of an enum."""

    __slots__ = ()


Fields = Mapping[str, object]


def config_text(fields: Fields) -> str:
    """Write a message, a line for each field.

    Args:
        fields: by name: text, numbers, `Symbol`, messages as mappings, and lists of these.
    """
    return "".join(f"{line}\n" for line in _lines(fields))


def map_field(values: Mapping[str, object]) -> list[Fields]:
    """Make the list of entries that protobuf's maps are written as."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _lines(fields: Fields) -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield f"{name} {{"
            yield from (f"  {line}" for line in _lines(value))
            yield "}"
        elif not isinstance(value, list | tuple):
            yield f"{name}: {_scalar(value)}"
        elif any(isinstance(one, Mapping) for one in value):
            for one in value:
                yield from _lines({name: one})
        else:
            yield f"{name}: [{', '.join(map(_scalar, value))}]"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Symbol | int):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
