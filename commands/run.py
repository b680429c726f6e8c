"""`run`: one question, one answer."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from runtime.errors import InputError

from . import answering, options, output
from .flag_groups import GenerationFlags, with_flag_groups

if TYPE_CHECKING:
    from runtime.generation.request import Request
    from runtime.generation.sampling import Choice


@with_flag_groups
def run(
    artifact: options.ArtifactArgument,
    prompt: options.PromptArgument,
    *,
    image: options.ImageOption = None,
    system: options.SystemOption = None,
    target: options.TargetOption = "cpu",
    threads: options.ThreadsOption = None,
    cpu_weights: options.CpuWeightsOption = "auto",
    flags: GenerationFlags,
    show_thinking: options.ShowThinkingOption = None,
    logprobs: options.LogprobsOption = None,
    json: options.JsonOption = False,
) -> None:
    """Ask one question and print the answer as it comes.

    With --json it is printed as one object at the end. The thinking of a thinking model is dimmed,
    and left out where no terminal reads.
    """
    if logprobs and not json:
        raise typer.BadParameter("needs --json", param_hint="--logprobs")
    wishes = flags.make_wishes(logprobs=logprobs)
    messages = _messages(_read_prompt(prompt), image or [], system)
    session = answering.open_session(
        artifact, target, flags.release, threads=threads, weights=cpu_weights
    )
    wishes.warn(session)
    request = wishes.request(session, session.encode(messages))
    if json:
        answer = answering.collect(session, request)
        output.json_value(_result_fields(request, answer))
        return
    is_shown = output.is_result_terminal() if show_thinking is None else show_thinking
    answering.print_stream(session, request, answering.Answer(), show_thinking=is_shown)
    answering.note_result(request.result)


def _messages(prompt: str, images: Sequence[str], system: str | None) -> list[dict[str, Any]]:
    """Make the conversation; images are opened here, before anything slow."""
    opened = [answering.open_image(path) for path in images]
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, answering.user_message(prompt, opened)]


def _read_prompt(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        text = sys.stdin.read()
        text.encode()  # in some locales, bytes that are none of UTF-8 come as lone surrogates
    except UnicodeError as error:
        raise InputError("standard input: not UTF-8 text") from error
    return text.removesuffix("\n")


def _result_fields(request: "Request", answer: answering.Answer) -> dict[str, Any]:
    result = request.result
    assert result is not None, "the generator has ended"
    fields = {
        "text": answer.text,
        "thinking": answer.thinking,
        "finish_reason": result.finish_reason,
        "usage": asdict(result.usage),
        "timings": asdict(result.timings),
        "ids": list(result.ids),
    }
    if request.sampling.logprobs:
        fields["logprobs"] = [_logprob_fields(choice) for choice in answer.choices]
    return fields


def _logprob_fields(choice: "Choice") -> dict[str, Any]:
    return {
        "id": choice.token_id,
        "logprob": choice.logprob,
        "top": [{"id": best.token_id, "logprob": best.logprob} for best in choice.top],
    }
