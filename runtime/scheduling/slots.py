"""Which slots are used, and what the free ones still hold.

Every slot is either used by one request or free. A free one keeps its content until it is wanted:

    free   1 [ nothing            ]   taken first by a text that nobody knows
           4 [ chat of an hour ago ]  then this, the longest unused
           0 [ chat of a minute ago ]
    used   2, 3
"""

from collections import OrderedDict
from typing import NamedTuple

from .content import EMPTY, Content, common_length
from .errors import SchedulerError

_MIN_KEPT = 0.5
"""Share of a free slot's content that a request must go on with to take that slot. With less it
gets a copy of the beginning in another one, and the old content stays."""


class Lease(NamedTuple):
    """A slot for a request."""

    slot: int
    num_reused: int
    """Tokens of the request's prompt that it holds already."""


class Match(NamedTuple):
    """A free slot that begins like a text."""

    slot: int
    length: int


class SlotTable:
    """Lends slots and remembers contents; does not touch the cache itself."""

    def __init__(self, num_slots: int) -> None:
        """Start with all slots free and empty."""
        self._num_slots = num_slots
        self._free: OrderedDict[int, Content] = OrderedDict.fromkeys(range(num_slots), EMPTY)
        self._used: set[int] = set()

    @property
    def num_slots(self) -> int:
        """All slots."""
        return self._num_slots

    @property
    def num_free(self) -> int:
        """Slots without a request."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Slots with one."""
        return len(self._used)

    @property
    def num_kept_tokens(self) -> int:
        """Tokens that free slots still hold."""
        return sum(map(len, self._free.values()))

    def take(self, wanted: Content) -> Lease:
        """Lend a free slot, which there must be, to a prompt of at least one token.

        The slot that begins like the prompt, if most of what it holds goes on being used; else an
        empty one; else the one that was not used for longest.
        """
        match = self.find(wanted)
        if match.length >= max(1, _MIN_KEPT * len(self._free[match.slot])):
            slot = match.slot
        else:
            empty = (slot for slot, content in self._free.items() if not len(content))
            slot = next(empty, next(iter(self._free)))
        reused = reusable_length(self._free.pop(slot), wanted)
        self._used.add(slot)
        return Lease(slot, reused)

    def find(self, wanted: Content) -> Match:
        """Find the free slot, which there must be, that begins most like a prompt."""
        lengths = {slot: reusable_length(kept, wanted) for slot, kept in self._free.items()}
        slot = max(lengths, key=lambda one: lengths[one])
        return Match(slot, lengths[slot])

    def touch(self, slot: int) -> None:
        """Count a free slot as used just now."""
        self._free.move_to_end(slot)

    def give_back(self, slot: int, content: Content) -> None:
        """Free a slot; `content` is what of it may be used again."""
        self._used.remove(slot)
        self._free[slot] = content

    def forget(self) -> None:
        """Forget what free slots hold."""
        for slot in self._free:
            self._free[slot] = EMPTY

    def check(self) -> None:
        """Check that no slot was lost or lent twice.

        Raises:
            SchedulerError: one was.
        """
        free, used = set(self._free), self._used
        if free & used or free | used != set(range(self._num_slots)):
            raise SchedulerError(
                f"slots free {sorted(free)} and used {sorted(used)} are not the "
                f"{self._num_slots} that there are"
            )


def reusable_length(held: Content, wanted: Content) -> int:
    """Count the tokens of a prompt that a slot holds; the last one is computed in any case."""
    return min(common_length(held, wanted), len(wanted) - 1)
