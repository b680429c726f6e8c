"""Records of the manifest from JSON: every field is there, of its type and in its range."""

from collections.abc import Iterator
from typing import Any, TypeVar

from .. import names
from ..limits import Limits
from .records import (
    TYPE_BYTES,
    BoundWeight,
    CacheRecord,
    CacheTensor,
    FileRecord,
    PlanRecord,
    PlansRecord,
    TableRecord,
    TargetRecord,
)

MAX_COUNT = (1 << 31) - 1
"""No number of tokens, slots, patches, rows or layers is larger."""
MAX_BYTES = 1 << 48
"""No file is larger, and no layer's cache."""

_T = TypeVar("_T")


class MalformedError(Exception):
    """A field of the manifest is not what it must be."""


class Fields:
    """One JSON object of the manifest; every reading checks the type."""

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, dict):
            raise MalformedError(f"`{where}` must be an object, found {type(value).__name__}")
        self.value: dict[str, Any] = value
        self.where = where
        self._read: set[str] = set()

    def get(self, name: str, kind: type[_T]) -> _T:
        """Return a value of exactly this type: `true` is not a number."""
        self._read.add(name)
        if name not in self.value:
            raise MalformedError(f"`{self._path(name)}` is missing")
        value = self.value[name]
        if type(value) is not kind:
            found = type(value).__name__
            raise MalformedError(f"`{self._path(name)}` must be {kind.__name__}, found {found}")
        return value

    def optional_text(self, name: str) -> str | None:
        """Return a string, or None where the value is null."""
        self._read.add(name)
        return None if self.value.get(name, "") is None else self.get(name, str)

    def count(self, name: str, *, minimum: int = 1, maximum: int = MAX_COUNT) -> int:
        """Return a whole number in a range."""
        value = self.get(name, int)
        if not minimum <= value <= maximum:
            where = self._path(name)
            raise MalformedError(f"`{where}` must be from {minimum} to {maximum}, is {value}")
        return value

    def counts(self, name: str, *, minimum: int) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        numbered = {str(i): value for i, value in enumerate(self.get(name, list))}
        items = Fields(numbered, self._path(name))
        return tuple(items.count(key, minimum=minimum) for key in numbered)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        numbered = {str(i): value for i, value in enumerate(self.get(name, list))}
        return tuple(Fields(numbered, self._path(name)).text_map().values())

    def child(self, name: str) -> "Fields":
        """Return an object in this object."""
        return Fields(self.get(name, dict), self._path(name))

    def optional_child(self, name: str) -> "Fields | None":
        """Return an object in this object, or None where the value is null."""
        self._read.add(name)
        return None if self.value.get(name, "") is None else self.child(name)

    def children(self) -> Iterator[tuple[str, "Fields"]]:
        """Yield every value, each an object."""
        return ((name, self.child(name)) for name in self.value)

    def text_map(self) -> dict[str, str]:
        """Return all values, each a string."""
        return {name: self.get(name, str) for name in self.value}

    def numbers(self) -> dict[str, float]:
        """Return all values, each a number with a fraction."""
        return {name: self.get(name, float) for name in self.value}

    def refuse_unread(self) -> None:
        """Refuse what nobody has asked for."""
        unknown = sorted(self._path(name) for name in self.value.keys() - self._read)
        if unknown:
            named = ", ".join(f"`{name}`" for name in unknown)
            raise MalformedError(f"{named} {'is' if len(unknown) == 1 else 'are'} not known")

    def _path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name


def read_table(fields: Fields) -> TableRecord:
    """Read the record of a table."""
    dtype, shape = fields.get("dtype", str), fields.counts("shape", minimum=1)
    if dtype not in TYPE_BYTES or len(shape) != 2:
        raise MalformedError(f"`{fields.where}` is a table of {len(shape)} axes of {dtype!r}")
    record = TableRecord(
        path=fields.get("path", str),
        dtype=dtype,
        shape=(shape[0], shape[1]),
        scales=fields.optional_text("scales"),
    )
    fields.refuse_unread()
    return record


def read_file(fields: Fields) -> FileRecord:
    """Read the record of a file."""
    record = FileRecord(
        bytes=fields.count("bytes", minimum=0, maximum=MAX_BYTES),
        sha256=fields.get("sha256", str),
    )
    fields.refuse_unread()
    return record


def read_limits(sizes: Fields) -> Limits:
    """Read the limits of a target."""
    limits = Limits(
        max_tokens=sizes.count("max_tokens"),
        max_input_tokens=sizes.count("max_input_tokens"),
        max_slots=sizes.count("max_slots"),
        max_patches=sizes.count("max_patches"),
        prefill_chunk=sizes.count("prefill_chunk"),
    )
    sizes.refuse_unread()
    if max(limits.max_input_tokens, limits.prefill_chunk) > limits.max_tokens:
        raise MalformedError(f"`{sizes.where}`: a prompt or chunk is larger than `max_tokens`")
    return limits


def read_target(fields: Fields) -> TargetRecord:
    """Read the record of a target."""
    limits = read_limits(fields.child("limits"))
    cache = _cache(fields.child("cache"))
    if limits.max_slots * limits.max_tokens * cache.token_bytes > MAX_BYTES:
        raise MalformedError(f"`{fields.where}`: a cache that no machine can hold")
    record = TargetRecord(
        graphs=fields.child("graphs").text_map(),
        cache=cache,
        limits=limits,
        passes=fields.texts("passes"),
        key=fields.get("key", str),
        plans=_plans(fields.optional_child("plans")),
        # Not in manifests of earlier versions, whose targets have none.
        decoder=fields.optional_text("decoder") if "decoder" in fields.value else None,
    )
    fields.refuse_unread()
    return record


def _plans(fields: Fields | None) -> PlansRecord | None:
    if fields is None:
        return None
    record = PlansRecord(
        package=fields.get("package", str),
        version=fields.get("version", str),
        sms=fields.texts("sms"),
        engines={name: _plan(one) for name, one in fields.child("engines").children()},
        wanted_precision=fields.get("wanted_precision", float),
    )
    fields.refuse_unread()
    return record


def _plan(fields: Fields) -> PlanRecord:
    weights = {name: _weight(one) for name, one in fields.child("weights").children()}
    path, graphs = fields.get("path", str), fields.texts("graphs")
    fields.refuse_unread()
    return PlanRecord(path=path, graphs=graphs, weights=weights)


def _weight(fields: Fields) -> BoundWeight:
    weight = BoundWeight(
        path=fields.get("path", str),
        offset=fields.count("offset", minimum=0, maximum=MAX_BYTES),
        length=fields.count("length", maximum=MAX_BYTES),
    )
    fields.refuse_unread()
    return weight


def _cache(fields: Fields) -> CacheRecord:
    tensors = {}
    for name, one in fields.child("tensors").children():
        tensors[name] = CacheTensor(dtype=one.get("dtype", str), width=one.count("width"))
        if tensors[name].dtype not in TYPE_BYTES:
            raise MalformedError(f"`{one.where}` is of type {tensors[name].dtype!r}")
        one.refuse_unread()
    if names.CACHE not in tensors:
        raise MalformedError(f"`{fields.where}.tensors.{names.CACHE}` is missing")
    fields.refuse_unread()
    return CacheRecord(tensors=tensors)
