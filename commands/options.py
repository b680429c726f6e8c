"""Arguments and flags that commands share: one name and one help text for one thing."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Dtype = Literal["bfloat16", "float16", "float32"]
ReleaseName = Literal["instruct", "thinking", "thinking-2506"]


CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A checkpoint folder, or an id owner/name on the Hugging Face hub.",
    ),
]
NewArtifactArgument = Annotated[
    Path,
    typer.Argument(
        metavar="ARTIFACT", help="The artifact folder to make, or to go on with after a stop."
    ),
]
ArtifactArgument = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="An artifact folder, made by compile.")
]

PromptArgument = Annotated[
    str, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from stdin.")
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TargetOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Where it runs: cpu; cuda; rtx:sm89, or several cards as rtx:sm89+sm120; trt.",
    ),
]
WeightsOption = Annotated[
    Literal["external", "embedded"],
    typer.Option(
        help="TensorRT: weights bound to plans that layers share, or held by plans of their own."
    ),
]
LayersPerEngineOption = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="TensorRT: decoder layers that one plan runs behind each other."
    ),
]
PluginsOption = Annotated[
    bool,
    typer.Option(
        "--plugins/--no-plugins", help="TensorRT: experts in our own kernels, where they exist."
    ),
]
OnDeviceOption = Annotated[
    bool, typer.Option("--on-device", help="Run and time what needs a GPU on the one that is here.")
]
QuickPluginsOption = Annotated[
    bool,
    typer.Option(
        "--quick-plugins",
        help="Target trt: TensorRT keeps the kernels: plans need no Python.",
    ),
]
MinPrecisionOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        metavar="SHARE",
        help="TensorRT: least share of the arithmetic that is done as the recipe says.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Cores to use.", show_default="all that are allowed"),
]

CpuWeightsOption = Annotated[
    Literal["auto", "packed", "mapped"],
    typer.Option(
        help="Where kernels of `make ops` read weights on target cpu: copied into large pages, "
        "from the mapped files, or copied if the machine has room.",
    ),
]

RecipeOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE.toml",
        help="The number format of each part: fp32, fp16, bf16, int8, fp8, int4, nvfp4 ..., "
        "a TOML file, or auto: the smallest one within --budget.",
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...",
        help="The only decoder layers to keep, such as 0,1; for trials.",
        show_default="all",
    ),
]
TapsOption = Annotated[
    bool,
    typer.Option("--taps", help="Let MoE layers put out the router's decisions too."),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        metavar="REVISION",
        help="Branch, tag or commit of a hub id.",
        show_default="the main branch",
    ),
]

DataOption = Annotated[
    str | None,
    typer.Option(
        metavar="SET",
        help="Conversations to find scales on: a JSONL file, a folder of images, or "
        "nano-calibration.",
        show_default="none; a quantised recipe needs one",
    ),
]
HeldOutOption = Annotated[
    str | None,
    typer.Option(
        metavar="SET",
        help="Other conversations, to measure the loss on.",
        show_default="a fifth of --data",
    ),
]
DataPromptOption = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="What each image of a folder is asked."),
]
MaxSamplesOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Most conversations of --data.", show_default="all"),
]
MaxHeldOutOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Most conversations of --held-out.")
]
DataSeedOption = Annotated[
    int, typer.Option(metavar="N", help="Decides which conversations are drawn.")
]
MinTokensPerExpertOption = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="An expert with fewer tokens is measured by those of its whole layer.",
    ),
]
MaxFallbackExpertsOption = Annotated[
    float,
    typer.Option(min=0, max=1, metavar="SHARE", help="Most experts that may be measured so."),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        metavar="kl=X,top1=X,em=X",
        help="The most that may be lost against fp32: mean KL in nats, share of equal first "
        "tokens, loss of exact match in points.",
        show_default="the recipe's",
    ),
]

MaxKvCacheCapacityOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Most tokens of one sequence, prompt and answer together.",
        show_default="8192, or what the model allows",
    ),
]
MaxInputLenOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Most tokens of a prompt, images included.",
        show_default="the cache's capacity",
    ),
]
MaxBatchSizeOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Slots: sequences in the cache at the same time.",
        show_default="1",
    ),
]
MaxImageTokensOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Most tokens of one image.",
        show_default="what the checkpoint's image rule can give",
    ),
]
PrefillChunkOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Tokens of a prompt that are computed in one step.",
        show_default="512",
    ),
]

ReleaseOption = Annotated[
    ReleaseName | None,
    typer.Option(
        help="The release whose recommended sampling and length are the defaults.",
        show_default="told from the checkpoint's files, else greedy",
    ),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Divides the logits; 0 is greedy.", show_default="the release's, else 0"
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Choose among the K best tokens; 0 is all.", show_default="0"),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Choose among the best tokens that hold this share of the probability; 1 is all.",
        show_default="1",
    ),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Leave out tokens below this share of the best one's probability; 0 is none.",
        show_default="0",
    ),
]
RepetitionPenaltyOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Above 1 makes tokens that were already seen less likely; 1 is off.",
        show_default="1",
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Equal seeds choose equally.", show_default="another each time"),
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Most tokens to generate, thinking included.",
        show_default="the release's, else all that fit",
    ),
]
MaxThinkingTokensOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Tokens of thinking after which the answer is begun.",
        show_default="no end",
    ),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End the answer before this text; may be given again.",
        show_default=False,
    ),
]
LogprobsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Best tokens to report with each token, at most 20; needs --json.",
        show_default="0",
    ),
]
ImageOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH",
        help="An image to ask about; may be given again, in order.",
        show_default=False,
    ),
]
SystemOption = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="What the system message says.", show_default=False),
]
ShowThinkingOption = Annotated[
    bool | None,
    typer.Option(
        "--show-thinking/--hide-thinking",
        help="Print the thinking before the answer.",
        show_default="only on a terminal",
    ),
]

PlanTargetOption = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Where it shall run: cpu, cuda, or rtx:smNN, such as rtx:sm89."
    ),
]
SamplesOption = Annotated[
    int,
    typer.Option(
        min=5, metavar="N", help="Conversations of a calibration, the held-out ones included."
    ),
]
SampleTokensOption = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Tokens of each, image tokens included; half are taken as such."
    ),
]


def layers_from_text(text: str | None) -> tuple[int, ...] | None:
    """Read `--layers`; whether the model has them is seen later."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"expected numbers with commas, such as 0,1; found {text!r}", param_hint="--layers"
        ) from error
