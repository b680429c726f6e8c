"""Flags of `bench serve`: what is asked, how requests come, what each asks for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.errors import InputError

if TYPE_CHECKING:
    from engines.load.asked import Question
    from engines.load.endpoint import Wishes
    from engines.load.run import Load

_DEFAULT_CONCURRENCY = 8

UrlArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="http://HOST:PORT of a server in OpenAI's dialect, or grpc://HOST:PORT/MODEL of "
        "a Triton server.",
    ),
]
QuestionsOption = Annotated[
    str,
    typer.Option(
        metavar="SET",
        help="What is asked: a JSONL file of conversations, a folder of images, or nano.",
    ),
]
TextShareOption = Annotated[
    float,
    typer.Option(
        min=0, max=1, metavar="SHARE", help="Requests whose images are left out, on average."
    ),
]
RequestsOption = Annotated[int, typer.Option(min=1, metavar="N", help="Requests to send.")]
ConcurrencyOption = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        "-c",
        min=1,
        metavar="N",
        help="Clients, each asking again when it was answered.",
        show_default="8, without --rate",
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Requests a second on average, at random times, whatever is answered.",
        show_default="none",
    ),
]
WarmupOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="Requests before, that are not counted.")
]
LoadTokensOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Most tokens of an answer.")
]
WithinOption = Annotated[
    str | None,
    typer.Option(
        metavar="ttft=S,token=S,total=S",
        help="What is good enough, in seconds: to the first token, between two, to the end.",
        show_default="everything that is answered",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Which model.", show_default="the first that there is"),
]
ApiKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Its first key is sent; as for serve, one a line, # for remarks.",
        show_default="none",
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        min=0.001, max=86_400, metavar="S", help="Seconds after which a request has failed."
    ),
]
PictureOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.svg", help="Draw the distributions.", show_default="no picture"),
]
LoadSeedOption = Annotated[int, typer.Option(metavar="N", help="Decides the order and the times.")]


@dataclass(frozen=True, kw_only=True)
class QuestionFlags:
    """What is asked."""

    data: QuestionsOption = "nano"
    text_share: TextShareOption = 0
    requests: RequestsOption = 100

    def draw(self, seed: int, *, num_more: int) -> "list[Question]":
        """Read the set and draw as many questions as are asked, and some more for warm-ups.

        Raises:
            InputError: there is no such set, or a picture of it cannot be used.
        """
        from calibration.data.samples import load_conversations
        from engines.load.asked import Question, draw_questions

        asked = [Question.of(example.messages) for example in load_conversations(self.data)]
        count = self.requests + num_more
        return draw_questions(asked, count, text_share=self.text_share, seed=seed)


@dataclass(frozen=True, kw_only=True)
class LoadFlags:
    """How requests come."""

    concurrency: ConcurrencyOption = None
    rate: RateOption = None
    warmup: WarmupOption = 2
    seed: LoadSeedOption = 0

    def make_load(self) -> "Load":
        """Turn the flags into what a run takes."""
        from engines.load.run import Load

        if self.concurrency is not None and self.rate is not None:
            raise typer.BadParameter("contradicts --rate", param_hint="--concurrency")
        clients = None if self.rate is not None else self.concurrency or _DEFAULT_CONCURRENCY
        return Load(concurrency=clients, rate=self.rate, num_warmups=self.warmup, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class WishFlags:
    """What each request asks for, of whom."""

    max_new_tokens: LoadTokensOption = 256
    model: ModelOption = None
    api_key_file: ApiKeyFileOption = None
    timeout: TimeoutOption = 300

    def make_wishes(self) -> "Wishes":
        """Turn the flags into what an endpoint takes.

        Raises:
            InputError: the key cannot be read.
        """
        from engines.load.endpoint import Wishes

        return Wishes(
            max_new_tokens=self.max_new_tokens,
            timeout_s=self.timeout,
            model=self.model,
            api_key=_read_key(self.api_key_file),
        )


def _read_key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the API key cannot be read: {error}") from error
    keys = [line.strip() for line in lines if not line.strip().startswith("#")]
    if not any(keys):
        raise InputError(f"{path}: holds no API key; write one in a line")
    return next(filter(None, keys))
