"""Which rows of tokens a benchmark has, named as llama-bench names them, and which of them fit."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from runtime.errors import CapacityError, InputError
from runtime.limits import Limits

Kind = Literal["prompt", "decode"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Tokens that are timed behind others, in one slot or in several at the same time."""

    kind: Kind
    tokens: int
    """Of the prompt, or one after the other in each slot."""
    depth: int
    """Tokens that are in each slot before."""
    batch: int = 1
    """Slots that decode together."""

    @property
    def name(self) -> str:
        """Write `pp512`, `tg128 @ d1024`, `tg128 x4`."""
        test = f"{'pp' if self.kind == 'prompt' else 'tg'}{self.tokens}"
        slots = f" x{self.batch}" if self.batch > 1 else ""
        behind = f" @ d{self.depth}" if self.depth else ""
        return test + slots + behind

    def misfit(self, limits: Limits, max_positions: int) -> "Misfit | None":
        """Say which limit is too small, or None; no build raises it over the model's positions."""
        needed = self.depth + self.tokens
        if needed > limits.max_tokens:
            found = f"the cache takes {limits.max_tokens} tokens"
            if needed > max_positions:
                return Misfit(self, found, f"ask for less: the model takes at most {max_positions}")
            return Misfit(
                self, found, f"ask for less, or build with --max-kv-cache-capacity {needed}"
            )
        if self.kind == "prompt" and self.tokens > limits.max_input_tokens:
            found = f"prompts have at most {limits.max_input_tokens} tokens"
            return Misfit(self, found, f"ask for less, or build with --max-input-len {self.tokens}")
        if self.batch > limits.max_slots:
            found = (
                "there is 1 slot"
                if limits.max_slots == 1
                else f"there are {limits.max_slots} slots"
            )
            return Misfit(self, found, f"ask for less, or build with --max-batch-size {self.batch}")
        return None


class Misfit(NamedTuple):
    """A row, the limit that it is over, and what to do."""

    row: Row
    limit: str
    cure: str


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for; None where the usual values are good, as far as they fit."""

    prompts: tuple[int, ...] | None = None
    decodes: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    batches: tuple[int, ...] | None = None


USUAL_PROMPTS = (512,)
USUAL_DECODES = (128,)
USUAL_DEPTHS = (0, 1024, 4096, 8192)
USUAL_BATCHES = (1,)


class Choice(NamedTuple):
    """The rows that fit, by rising depth, and a phrase for each limit that others are over."""

    rows: list[Row]
    left_out: list[str]


def choose_rows(wanted: Wanted, limits: Limits, max_positions: int) -> Choice:
    """Cross prompts and tokens with depths; leave out what does not fit.

    Prompts are run in one slot. A number of 0 prompts or tokens means none. The model was made for
    `max_positions` tokens.

    Raises:
        InputError: a number is below what it counts.
        CapacityError: nothing fits, or nothing of a number that was asked for.
    """
    _check_numbers(wanted)
    rows: list[Row] = []
    misfits: list[Misfit] = []
    for row in _all_rows(wanted):
        misfit = row.misfit(limits, max_positions)
        if misfit is None:
            rows.append(row)
        else:
            misfits.append(misfit)
    _check_named(wanted, rows, misfits)
    return Choice(rows, list(_phrases(misfits)))


def _phrases(misfits: list[Misfit]) -> Iterator[str]:
    for limit in dict.fromkeys(one.limit for one in misfits):
        names = [one.row.name for one in misfits if one.limit == limit]
        yield f"{', '.join(names)}: {limit}"


def _all_rows(wanted: Wanted) -> Iterator[Row]:
    prompts = USUAL_PROMPTS if wanted.prompts is None else wanted.prompts
    decodes = USUAL_DECODES if wanted.decodes is None else wanted.decodes
    for depth in sorted(set(wanted.depths or USUAL_DEPTHS)):
        for tokens in filter(None, dict.fromkeys(prompts)):
            yield Row(kind="prompt", tokens=tokens, depth=depth)
        batches = dict.fromkeys(wanted.batches or USUAL_BATCHES)
        for tokens, batch in product(filter(None, dict.fromkeys(decodes)), batches):
            yield Row(kind="decode", tokens=tokens, depth=depth, batch=batch)


def _check_numbers(wanted: Wanted) -> None:
    least = {"prompt-tokens": 0, "decode-tokens": 0, "depths": 0, "batch-sizes": 1}
    given = (wanted.prompts, wanted.decodes, wanted.depths, wanted.batches)
    for (name, smallest), numbers in zip(least.items(), given, strict=True):
        for number in numbers or ():
            if number < smallest:
                raise InputError(f"--{name}: expected numbers from {smallest} on, found {number}")


def _check_named(wanted: Wanted, rows: list[Row], misfits: list[Misfit]) -> None:
    """Refuse numbers that were asked for and of which no row is left."""
    asked: list[tuple[str, Kind | None, str, tuple[int, ...] | None]] = [
        ("prompt-tokens", "prompt", "tokens", wanted.prompts),
        ("decode-tokens", "decode", "tokens", wanted.decodes),
        ("depths", None, "depth", wanted.depths),
        ("batch-sizes", "decode", "batch", wanted.batches),
    ]
    for flag, kind, field, numbers in asked:
        for number in numbers or ():
            out = [one for one in misfits if _has(one.row, kind, field, number)]
            if out and not any(_has(row, kind, field, number) for row in rows):
                _refuse(f"--{flag} {number} does not fit", out)
    if misfits and not rows:
        _refuse("nothing fits", misfits)


def _has(row: Row, kind: Kind | None, field: str, number: int) -> bool:
    return kind in (None, row.kind) and getattr(row, field) == number


def _refuse(what: str, misfits: list[Misfit]) -> None:
    row, limit, cure = min(misfits, key=lambda one: one.row.depth + one.row.tokens)
    needed = f"{row.depth + row.tokens} tokens in {row.batch} slot{'s' * (row.batch > 1)}"
    raise CapacityError(f"{what}: {row.name} needs {needed} and {limit}; {cure}")
