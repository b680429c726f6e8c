"""What an answer has to be, read from a request and compiled once for all requests that say it."""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import InputError, UnsupportedError
from ..generation.constraint import Grammar
from ..generation.grammar import GrammarCompiler
from ..prompt.tokenizer import Tokenizer
from .api_errors import ApiError

MAX_CONSTRAINT_BYTES = 256 << 10
"""Of a constraint's text; compiling it may take time that grows faster than the text."""
_SHOWN = 300
_NUM_KEPT = 32
_MAX_KEPT_BYTES = 1 << 20
"""Of all kept texts; a compiled one can take forty times as much."""
_ANY_OBJECT = {"type": "object"}
_GUIDES = ("guided_regex", "guided_choice", "guided_grammar")


@dataclass(frozen=True, kw_only=True)
class GrammarSpec:
    """A constraint in words."""

    kind: Literal["json", "regex", "lark"]
    text: str

    @property
    def size_bytes(self) -> int:
        """Count the bytes of the text."""
        return len(self.text.encode())


def read_constraint(fields: Mapping[str, Any]) -> GrammarSpec | None:
    """Find the constraint of a request whose fields are of the right types.

    Raises:
        ApiError: there are several, or one has not the form that it should have, or is too long.
    """
    found: list[tuple[str, GrammarSpec]] = []
    response_format = fields.get("response_format")
    if response_format is not None:
        spec = _read_format(response_format)
        found += [("response_format", spec)] if spec else []
    for name in _GUIDES:
        if name in fields:
            found.append((name, _read_guide(name, fields[name])))
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise _wrong(found[0][0], f"{names} were given; an answer follows one of them")
    for name, spec in found:
        if spec.size_bytes > MAX_CONSTRAINT_BYTES:
            found_bytes = f"{spec.size_bytes:,} bytes"
            most = f"no more than {MAX_CONSTRAINT_BYTES:,} are compiled"
            raise _wrong(name, f"the constraint has {found_bytes}; {most}")
    return found[0][1] if found else None


class Grammars:
    """Compiles constraints, and remembers the latest."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        *,
        num_kept: int = _NUM_KEPT,
        max_kept_bytes: int = _MAX_KEPT_BYTES,
    ) -> None:
        """Read the vocabulary, which takes about a second for a large one.

        Args:
            tokenizer: of the checkpoint.
            stop_ids: ids that end an answer.
            num_kept: most grammars that are remembered.
            max_kept_bytes: most that their texts have together.

        Without the library every constraint is refused with what to install.
        """
        self._kept: OrderedDict[GrammarSpec, Grammar] = OrderedDict()
        self._num_kept, self._max_kept_bytes = num_kept, max_kept_bytes
        self._stop_ids = stop_ids
        self._lock = threading.Lock()
        try:
            self._compiler: GrammarCompiler | UnsupportedError = GrammarCompiler(
                tokenizer, stop_ids
            )
        except UnsupportedError as error:
            self._compiler = error

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Compile a constraint, or find it compiled; from any thread.

        Raises:
            InputError: it cannot be understood, or asks for what is not implemented.
            ConstraintError: no answer can begin to follow it.
            UnsupportedError: the library is not installed.
        """
        compiler = self._compiler
        if isinstance(compiler, UnsupportedError):
            raise UnsupportedError(str(compiler))
        with self._lock:
            known = self._kept.get(spec)
            if known is not None:
                self._kept.move_to_end(spec)
                return known
        grammar = _compile(compiler, spec)
        _try_to_begin(grammar, self._stop_ids)
        with self._lock:
            self._kept[spec] = grammar
            while self._are_too_many():
                self._kept.popitem(last=False)
        return grammar

    def _are_too_many(self) -> bool:
        size_bytes = sum(spec.size_bytes for spec in self._kept)
        return len(self._kept) > self._num_kept or size_bytes > self._max_kept_bytes


def _compile(compiler: GrammarCompiler, spec: GrammarSpec) -> Grammar:
    """Turn words into a grammar."""
    try:
        if spec.kind == "json":
            grammar: Grammar = compiler.from_json_schema(json.loads(spec.text))
        elif spec.kind == "regex":
            grammar = compiler.from_regex(spec.text)
        else:
            grammar = compiler.from_lark(spec.text)
    except (ValueError, RecursionError) as error:  # nested too deeply for the library
        # The library may append a backtrace of its own.
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:_SHOWN]
        raise InputError(f"the constraint cannot be compiled: {reason}") from error
    return grammar


def _try_to_begin(grammar: Grammar, stop_ids: frozenset[int]) -> None:
    """See how an answer may begin.

    That is where exploding grammars fail, which may take a second: better here than between two
    steps that all requests wait for.

    Raises:
        ConstraintError: no answer can.
    """
    constraint = grammar.start()
    for token_id in np.flatnonzero(constraint.allowed(0))[:1].tolist():
        if token_id not in stop_ids:
            constraint.accept(token_id)
            constraint.allowed(0)


def _read_format(value: Mapping[str, Any]) -> GrammarSpec | None:
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return _json_spec(_ANY_OBJECT)
    if kind != "json_schema":
        raise _wrong("response_format", "type: expected text, json_object or json_schema")
    described = value.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        raise _wrong("response_format", "json_schema.schema: expected an object")
    return _json_spec(schema)


def _json_spec(schema: Mapping[str, Any]) -> GrammarSpec:
    try:
        return GrammarSpec(kind="json", text=json.dumps(schema))
    except RecursionError as error:
        raise _wrong("response_format", "json_schema.schema: nested too deeply") from error


def _read_guide(name: str, value: Any) -> GrammarSpec:  # noqa: ANN401  of the table's type
    if name == "guided_grammar":
        return GrammarSpec(kind="lark", text=value)
    if name == "guided_regex":
        return GrammarSpec(kind="regex", text=value)
    if not value or not all(isinstance(one, str) and one for one in value):
        raise _wrong(name, "expected at least one text, none empty")
    return GrammarSpec(kind="regex", text="|".join(map(re.escape, value)))


def _wrong(name: str, problem: str) -> ApiError:
    return ApiError(400, f"{name}: {problem}", code="invalid_value", param=name)
