"""`bench`: how fast an artifact is on this machine, and how far from what memory allows."""

from typing import TYPE_CHECKING, Annotated

import typer

from . import bench_tables, options, output, progress

if TYPE_CHECKING:
    from engines.measure.images import ImageSize

NO_IMAGES = "none"

PromptTokensOption = Annotated[
    str | None,
    typer.Option(
        "--prompt-tokens",
        "-p",
        metavar="N,N,...",
        help="Prompts to time, in tokens; 0 for none.",
        show_default="512",
    ),
]
DecodeTokensOption = Annotated[
    str | None,
    typer.Option(
        "--decode-tokens",
        "-n",
        metavar="N,N,...",
        help="Tokens to decode one by one; 0 for none.",
        show_default="128",
    ),
]
DepthsOption = Annotated[
    str | None,
    typer.Option(
        "--depths",
        "-d",
        metavar="N,N,...",
        help="Tokens in the cache before.",
        show_default="0,1024,4096,8192",
    ),
]
BatchSizesOption = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="Slots that decode together.", show_default="1"),
]
ImagesOption = Annotated[
    str | None,
    typer.Option(
        metavar="WxH,...|none",
        help="Images to encode, in pixels.",
        show_default="448x448,1920x1080",
    ),
]
RepeatsOption = Annotated[
    int, typer.Option("--repeats", "-r", min=1, metavar="N", help="Samples of each row.")
]


def bench(
    artifact: options.ArtifactArgument,
    *,
    prompt_tokens: PromptTokensOption = None,
    decode_tokens: DecodeTokensOption = None,
    depths: DepthsOption = None,
    batch_sizes: BatchSizesOption = None,
    images: ImagesOption = None,
    repeats: RepeatsOption = 5,
    target: options.TargetOption = "cpu",
    threads: options.ThreadsOption = None,
    cpu_weights: options.CpuWeightsOption = "auto",
    json: options.JsonOption = False,
) -> None:
    """Time an artifact on this machine, as llama-bench does.

    Prompts (pp) and decoding (tg) behind N tokens (@ d), images (vit), the start of a fresh process
    up to its first token, memory; and how much of the speed is reached that the memory bandwidth of
    the same run allows. Usual rows that do not fit the artifact's limits are left out; what is
    asked for must fit.
    """
    prompts = _numbers(prompt_tokens, "--prompt-tokens")
    decodes = _numbers(decode_tokens, "--decode-tokens")
    behind = _numbers(depths, "--depths")
    batches = _numbers(batch_sizes, "--batch-sizes")
    from engines.measure.bench import Bench, BenchOptions
    from engines.measure.rows import Wanted

    wanted = BenchOptions(
        target=target,
        rows=Wanted(prompts=prompts, decodes=decodes, depths=behind, batches=batches),
        images=_sizes(images),
        repeats=repeats,
        num_threads=threads,
        weights=cpu_weights,
    )
    chosen = Bench.choose(artifact, wanted)
    for phrase in chosen.left_out:
        output.note(f"note: left out: {phrase}")
    with progress.showing() as report:
        found = chosen.run(report)
    if json:
        output.json_value(found.fields())
    else:
        bench_tables.show(found)
    bench_tables.warn(found)


def _numbers(text: str | None, flag: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"expected numbers with commas, such as 0,1024; found {text!r}", param_hint=flag
        ) from error


def _sizes(text: str | None) -> "tuple[ImageSize, ...] | None":
    from engines.measure.images import ImageSize

    if text is None:
        return None
    return () if text == NO_IMAGES else tuple(map(ImageSize.from_text, text.split(",")))
