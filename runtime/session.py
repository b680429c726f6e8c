"""An opened artifact: conversations in, streamed text or logits out. The one class users need.

Joins the parts and decides nothing itself: prompts (`prompt`), engine (`engine`), generation
(`generate`), release defaults (`releases`).
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .artifact.folder import Artifact
from .config import KimiVLConfig
from .cores import thread_count
from .engine.cpu.weights_place import WeightsPlace
from .engine.opening import open_engine
from .engine.protocol import Engine, FloatArray
from .errors import CapacityError, InputError
from .generation.batch import Answer, generate_batch
from .generation.channels import Piece
from .generation.constraint import Grammar
from .generation.generate import generate
from .generation.releases import RELEASES, Release, default_sampling, detect_release, stop_ids
from .generation.request import Request
from .generation.sampling import Sampling
from .generation.steps import check_prompt, embed_prompt, prefill_logits
from .generation.stopping import GenerationLimits
from .progress import Progress, silent
from .prompt.encoder import Prompt, PromptEncoder
from .prompt.messages import Message
from .prompt.tokenizer import Tokenizer
from .scheduling.options import SchedulerOptions
from .scheduling.scheduler import Scheduler, ignore
from .scheduling.statistics import Observer


class Session:
    """Answers requests on one engine, one in each slot."""

    def __init__(
        self,
        engine: Engine,
        encoder: PromptEncoder,
        *,
        stop_ids: frozenset[int],
        release: Release | None = None,
    ) -> None:
        """Join ready parts; `Session.open` makes them from a folder."""
        self.engine = engine
        self._free_slots = list(range(engine.limits.max_slots))[::-1]
        self.encoder = encoder
        self.stop_ids = stop_ids
        self.release = release

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        target: str = "cpu",
        release: str | None = None,
        num_threads: int | None = None,
        weights: WeightsPlace = "auto",
        progress: Progress = silent,
    ) -> "Session":
        """Check an artifact folder and load its graphs.

        Args:
            folder: made by `tool.py compile`.
            target: which of the targets it was built for.
            release: `instruct`, `thinking` or `thinking-2506`, for the sampling defaults; told
                from the folder where its files say it, else unknown.
            num_threads: cores to use; all that this process may, if left out.
            weights: on target `cpu`, `packed` copies them into large pages, `mapped` reads them
                where their files are mapped; `auto` copies where the machine has room.
            progress: told how much of the files is checked.

        Raises:
            ArtifactError: the folder is incomplete, altered, or not built for the target.
            InputError: there is no such release, or more threads are wanted than can run.
        """
        thread_count(num_threads)  # refused before gigabytes are hashed
        artifact = Artifact.open(folder, progress=progress)
        model_folder = artifact.model_folder
        config = KimiVLConfig.load(model_folder / "config.json")
        encoder = PromptEncoder.load(model_folder, config)
        known = detect_release(model_folder) if release is None else _named_release(release)
        return cls(
            open_engine(artifact, target, num_threads=num_threads, weights=weights),
            encoder,
            stop_ids=stop_ids(config, model_folder, encoder.tokenizer),
            release=known,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self.encoder.tokenizer

    def encode(self, messages: Sequence[Mapping[str, Any]] | Sequence[Message]) -> Prompt:
        """Turn messages in OpenAI form into a prompt; images may also be paths, bytes or PIL."""
        return self.encoder.encode(messages)

    def logits(self, prompt: Prompt) -> FloatArray:
        """Return the logits behind every token of a prompt, teacher-forced, (S, V).

        Raises:
            CapacityError: the prompt does not fit a slot.
        """
        limits = self.engine.limits
        check_prompt(prompt, limits)
        hidden = embed_prompt(self.engine, prompt)
        with self._slot() as slot:
            return prefill_logits(self.engine, slot, hidden, 0, limits.prefill_chunk)

    def request(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        limits: GenerationLimits | None = None,
        *,
        grammar: Grammar | None = None,
    ) -> Request:
        """Describe a request; after `stream` has ended it carries ids, counts and timings.

        Args:
            prompt: from `encode`.
            sampling: the release's recommendation, or greedy where the release is unknown.
            limits: all that fits the slot, if left out.
            grammar: what the answer has to be, behind any thinking (`generation/grammar.py`).
        """
        if limits is None:
            limits = GenerationLimits(
                max_new_tokens=self.release.max_new_tokens if self.release else None
            )
        return Request(
            prompt,
            stop_ids=self.stop_ids,
            sampling=sampling or default_sampling(self.release),
            limits=limits,
            grammar=grammar,
        )

    def stream(self, request: Request) -> Generator[Piece, None, None]:
        """Answer a request piece by piece; closing the generator cancels it.

        The first piece takes a slot, which the end gives back: as many streams can be open at a
        time as the engine has slots.

        Raises:
            CapacityError: the prompt does not fit, told at once; or no slot is free, told with the
                first piece.
        """
        check_prompt(request.prompt, self.engine.limits)
        return self._stream(request)

    def answer_all(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answer many requests over all slots; each is yielded when it ends, in no fixed order.

        Raises:
            CapacityError: a prompt does not fit, or a stream is open.
        """
        with ExitStack() as stack:
            for _ in range(self.engine.limits.max_slots):
                stack.enter_context(self._slot())
            yield from generate_batch(self.engine, self.tokenizer, requests)

    @contextmanager
    def scheduling(
        self, options: SchedulerOptions | None = None, *, observe: Observer = ignore
    ) -> Iterator[Scheduler]:
        """Answer many requests at once, from many threads, until the end of the block.

        It takes all slots. Its end ends what still runs; `Scheduler.drain` waits for that before.

        Raises:
            CapacityError: a stream is open.
        """
        with ExitStack() as stack:
            for _ in range(self.engine.limits.max_slots):
                stack.enter_context(self._slot())
            scheduler = Scheduler(self.engine, self.tokenizer, options=options, observe=observe)
            yield stack.enter_context(scheduler)

    def _stream(self, request: Request) -> Generator[Piece, None, None]:
        with self._slot() as slot:
            yield from generate(self.engine, self.tokenizer, request, slot=slot)

    @contextmanager
    def _slot(self) -> Iterator[int]:
        """Lend a slot that nothing else writes to."""
        if not self._free_slots:
            raise CapacityError(
                f"all {self.engine.limits.max_slots} slots are answering; finish or close a "
                "stream first, or build with a larger --max-batch-size"
            )
        slot = self._free_slots.pop()
        try:
            yield slot
        finally:
            self._free_slots.append(slot)

    def generate(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        limits: GenerationLimits | None = None,
    ) -> Generator[Piece, None, None]:
        """Answer a prompt: pieces with `.text` and `.channel` (`thinking` or `answer`).

        Args:
            prompt: from `encode`.
            sampling: the release's recommendation, or greedy where the release is unknown.
            limits: all that fits the slot, if left out.

        Raises:
            CapacityError: the prompt or an image is over the limits, told with the numbers.
            NumericError: a non-finite value appeared; the request is over.
        """
        return self.stream(self.request(prompt, sampling, limits))


def _named_release(name: str) -> Release:
    for release in RELEASES:
        if release.name == name:
            return release
    known = ", ".join(release.name for release in RELEASES)
    raise InputError(f"release {name!r}: known ones are {known}")
