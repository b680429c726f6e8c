"""One submitted request on its way: waiting, preparing, decoding, ended."""

from time import monotonic

from ..generation.request import Request
from ..generation.slot_run import SlotRun
from .content import Content
from .errors import DeadlineError
from .handle import Handle
from .options import Deadlines


class Job:
    """A request, who waits for it, and its run once it has a slot."""

    def __init__(self, handle: Handle, content: Content, deadlines: Deadlines) -> None:
        """Note when the request was submitted; `content` is its prompt."""
        self.handle = handle
        self.content = content
        self._deadlines = deadlines
        self._submitted = self._last_token = monotonic()
        self._admitted = 0.0
        self._run: SlotRun | None = None
        self.has_begun = False
        """Whether it has looked for a beginning to copy, which it does with its first chunk."""

    @property
    def request(self) -> Request:
        """What is asked."""
        return self.handle.request

    @property
    def is_ended(self) -> bool:
        """Whether its last event was told."""
        return self.handle.end is not None

    @property
    def has_run(self) -> bool:
        """Whether it was given a slot."""
        return self._run is not None

    @property
    def run(self) -> SlotRun:
        """The run of an admitted job."""
        assert self._run is not None
        return self._run

    @property
    def num_left(self) -> int:
        """Tokens of the prompt that are not in the slot."""
        return self.run.num_left

    @property
    def is_decoding(self) -> bool:
        """Whether its first token was chosen; then all that its slot holds is known to be good."""
        return bool(self.run.decoding.ids)

    @property
    def held(self) -> Content:
        """What its slot holds and others may use: only what finite logits have followed."""
        run = self.run
        return self.content.with_ids(run.ids if self.is_decoding else run.ids[: run.num_reused])

    @property
    def queued_s(self) -> float:
        """How long it waited for its slot."""
        return self._admitted - self._submitted

    @property
    def held_s(self) -> float:
        """How long it has had a slot."""
        return monotonic() - self._admitted

    @property
    def age_s(self) -> float:
        """How long ago it was submitted."""
        return monotonic() - self._submitted

    def admit(self, run: SlotRun) -> None:
        """Give it a run in a slot."""
        self._run = run
        self._admitted = monotonic()

    def lap_s(self) -> float:
        """Give the time since the token before, or since the submission."""
        before, self._last_token = self._last_token, monotonic()
        return self._last_token - before

    def overdue(self) -> DeadlineError | None:
        """Tell whether it has taken longer than it was given."""
        age, given = self.age_s, self._deadlines
        if given.total_s is not None and age > given.total_s:
            return DeadlineError(
                f"the request was not answered within {given.total_s:g} s; ask for fewer tokens or "
                "give it longer"
            )
        if self._run is None and given.queue_s is not None and age > given.queue_s:
            return DeadlineError(
                f"the request waited {given.queue_s:g} s for a slot and got none; try again later"
            )
        return None
