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

    def __init__(
        self,
        handle: Handle,
        content: Content,
        deadlines: Deadlines,
        *,
        arrived: float | None = None,
    ) -> None:
        """Note when the request was submitted.

        Args:
            handle: of the request.
            content: its prompt.
            deadlines: how long it may take.
            arrived: when it came to whoever submits it, by `time.monotonic`; now, if left out.
        """
        self.handle = handle
        self.content = content
        self._deadlines = deadlines
        self._submitted = monotonic()
        self._arrived = self._last_token = self._submitted if arrived is None else arrived
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
        """How long ago it arrived."""
        return monotonic() - self._arrived

    def admit(self, run: SlotRun) -> None:
        """Give it a run in a slot."""
        self._run = run
        self._admitted = monotonic()

    def lap_s(self) -> float:
        """Give the time since the token before, or since the arrival."""
        before, self._last_token = self._last_token, monotonic()
        return self._last_token - before

    def overdue(self) -> DeadlineError | None:
        """Tell whether it has taken longer than it was given."""
        given, now = self._deadlines, monotonic()
        if given.total_s is not None and now - self._arrived > given.total_s:
            return DeadlineError.unanswered(given.total_s)
        is_waiting = self._run is None
        if is_waiting and given.queue_s is not None and now - self._submitted > given.queue_s:
            return DeadlineError(
                f"the request waited {given.queue_s:g} s for a slot and got none; try again later"
            )
        return None
