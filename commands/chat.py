"""`chat`: a conversation in the terminal, or one message a line from a pipe."""

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from runtime.errors import KimiVLError

from . import answering, options, output
from .flag_groups import GenerationFlags, with_flag_groups
from .outcome import TerminatedError

if TYPE_CHECKING:
    from PIL import Image

    from runtime.session import Session

_HELP = """\
/image PATH  attach an image to the next message; may be given again
/reset       begin a new conversation
/help        show these lines
/exit        leave, as Ctrl-D does; Ctrl-C stops an answer"""


@with_flag_groups
def chat(
    artifact: options.ArtifactArgument,
    *,
    system: options.SystemOption = None,
    target: options.TargetOption = "cpu",
    threads: options.ThreadsOption = None,
    cpu_weights: options.CpuWeightsOption = "auto",
    flags: GenerationFlags,
    show_thinking: options.ShowThinkingOption = None,
) -> None:
    """Talk with the model, one message a line.

    The line /help lists what else a line can be. Earlier thinking is not sent again. An error ends
    the message, not the chat.
    """
    wishes = flags.make_wishes()
    session = answering.open_session(
        artifact, target, flags.release, threads=threads, weights=cpu_weights
    )
    wishes.warn(session)
    is_shown = output.is_result_terminal() if show_thinking is None else show_thinking
    Chat(session, wishes, system, show_thinking=is_shown).loop()


class Chat:
    """The conversation so far, and images that wait for the next message."""

    def __init__(
        self,
        session: "Session",
        wishes: answering.Wishes,
        system: str | None,
        *,
        show_thinking: bool,
    ) -> None:
        self._session = session
        self._wishes = wishes
        self._first = [{"role": "system", "content": system}] if system is not None else []
        self._show_thinking = show_thinking
        self._messages: list[dict[str, Any]] = []
        self._images: list[Image.Image] = []

    def loop(self) -> None:
        """Take lines until they end."""
        if sys.stdin.isatty():
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  gives input() a history and line editing
            output.note("/help shows what a line can be; Ctrl-D ends the chat")
        while True:
            try:
                line = output.ask("> ").strip()
                if line == "/exit":
                    return
                self._take(line)
            except EOFError:
                if sys.stdin.isatty():
                    output.note("")  # the shell's prompt gets a line of its own
                return
            except KimiVLError as error:
                output.error(str(error))
            except UnicodeError:
                output.error("the line is not text; nothing was sent")
            except KeyboardInterrupt as error:
                if _is_end(error):
                    raise
                output.note("\nCtrl-D or /exit ends the chat")

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "/image" and rest.strip():
            self._attach(rest.strip())
        elif line == "/reset":
            self._messages, self._images = [], []
            output.note("a new conversation")
        elif line == "/help":
            output.note(_HELP)
        elif line.startswith("/"):
            output.error(f"{word}: no such command, or not whole; /help lists them")
        elif line:
            self._answer(line)

    def _attach(self, path: str) -> None:
        self._images.append(answering.open_image(path))
        output.note(f"{len(self._images)} attached to the next message")

    def _answer(self, text: str) -> None:
        """Answer a message; an error takes it and its images out of the conversation."""
        from runtime.prompt.messages import drop_thinking, parse_messages

        images, self._images = self._images, []
        asked = [*self._messages, answering.user_message(text, images)]
        messages = drop_thinking(parse_messages([*self._first, *asked]))
        prompt = self._session.encoder.encode(messages)
        request = self._wishes.request(self._session, prompt)
        answer = answering.Answer()
        try:
            answering.print_stream(
                self._session, request, answer, show_thinking=self._show_thinking
            )
        except KeyboardInterrupt as error:
            if _is_end(error):
                raise
            output.note("stopped")
        answering.note_result(request.result)
        self._messages = [*asked, {"role": "assistant", "content": _raw(answer)}]


def _is_end(error: KeyboardInterrupt) -> bool:
    """Whether nobody is there who could want to go on, or SIGTERM asks for the end."""
    return isinstance(error, TerminatedError) or not sys.stdin.isatty()


def _raw(answer: answering.Answer) -> str:
    """Write an answer as the model did, thinking included."""
    from runtime.prompt.special_tokens import THINK_END, THINK_START

    if not answer.thinking:
        return answer.text
    return f"{THINK_START}{answer.thinking}{THINK_END}{answer.text}"
