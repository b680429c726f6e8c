"""Flags that go together: a frozen dataclass each, which a command takes as one parameter.

    @with_flag_groups
    def build(artifact: ArtifactArgument, *, limits: LimitFlags) -> None: ...

The command line sees the fields of `LimitFlags` as flags of their own.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError

from . import options, output

if TYPE_CHECKING:
    from calibration.stage import CalibrateOptions
    from engines.options import BuildOptions, PlanOptions
    from export.checkpoint.reader import Checkpoint
    from export.recipe.recipe import Recipe
    from export.stage import ExportOptions

    from .answering import Wishes


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """What of a checkpoint is exported, and how."""

    recipe: options.RecipeOption = "fp32"
    layers: options.LayersOption = None
    taps: options.TapsOption = False
    revision: options.RevisionOption = None

    def open(self, checkpoint: str) -> "Checkpoint":
        """Open a checkpoint as far as it will be read."""
        layers = options.layers_from_text(self.layers)
        from export.checkpoint.reader import Checkpoint

        return Checkpoint.open(checkpoint, revision=self.revision, layers=layers)

    def make_options(self) -> "ExportOptions":
        """Turn the flags into what the export takes."""
        from export.recipe.reading import load_recipe
        from export.stage import ExportOptions

        layers = options.layers_from_text(self.layers)
        return ExportOptions(recipe=load_recipe(self.recipe), layers=layers, taps=self.taps)


@dataclass(frozen=True, kw_only=True)
class CalibrationFlags:
    """Which conversations calibrate a quantised recipe, and what the gate demands."""

    data: options.DataOption = None
    held_out: options.HeldOutOption = None
    data_prompt: options.DataPromptOption = None
    max_samples: options.MaxSamplesOption = None
    max_held_out: options.MaxHeldOutOption = 100
    data_seed: options.DataSeedOption = 0
    min_tokens_per_expert: options.MinTokensPerExpertOption = 32
    max_fallback_experts: options.MaxFallbackExpertsOption = 0.05
    budget: options.BudgetOption = None

    def note_unused(self, recipe: "Recipe") -> None:
        """Say that what is given of these has no effect on a recipe that is not quantised."""
        given = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
        if given and not recipe.is_quantised:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            output.note(f"note: {flags} without effect: recipe {recipe.name} is not quantised")

    def make_options(self, wanted: "ExportOptions") -> "CalibrateOptions":
        """Turn the flags into what the calibration takes.

        Raises:
            InputError: there is no data, or the budget is malformed.
        """
        from calibration.data.conversations import DataOptions
        from calibration.price.gate import GateLimits, parse_budget
        from calibration.stage import CalibrateOptions

        if self.data is None:
            raise InputError(
                f"recipe {wanted.recipe.name} is quantised: give conversations with --data"
            )
        data = DataOptions(
            data=self.data,
            held_out=self.held_out,
            max_samples=self.max_samples,
            max_held_out=self.max_held_out,
            seed=self.data_seed,
        )
        limits = GateLimits(
            min_tokens_per_expert=self.min_tokens_per_expert,
            max_fallback_share=self.max_fallback_experts,
            budget=parse_budget(self.budget, wanted.recipe.budget) if self.budget else None,
        )
        if self.data_prompt is not None:
            data = replace(data, prompt=self.data_prompt)
        return CalibrateOptions(export=wanted, data=data, limits=limits)


@dataclass(frozen=True, kw_only=True)
class PlanFlags:
    """How the plans of a target of TensorRT are made."""

    weights: options.WeightsOption = "external"
    layers_per_engine: options.LayersPerEngineOption = 1
    plugins: options.PluginsOption = True
    quick_plugins: options.QuickPluginsOption = False
    min_precision: options.MinPrecisionOption = 0.95

    def make_options(self) -> "PlanOptions":
        """Turn the flags into what the build takes."""
        from engines.options import PlanOptions

        return PlanOptions(
            weights=self.weights,
            layers_per_engine=self.layers_per_engine,
            use_plugins=self.plugins,
            use_quick_plugins=self.quick_plugins,
            min_precision=self.min_precision,
        )


@dataclass(frozen=True, kw_only=True)
class LimitFlags:
    """The sizes that a target is built for, under the names that users know."""

    max_kv_cache_capacity: options.MaxKvCacheCapacityOption = None
    max_input_len: options.MaxInputLenOption = None
    max_batch_size: options.MaxBatchSizeOption = None
    max_image_tokens: options.MaxImageTokensOption = None
    prefill_chunk: options.PrefillChunkOption = None

    def make_options(self, plans: PlanFlags | None = None) -> "BuildOptions":
        """Turn the flags, with those about plans if there are any, into what the build takes."""
        from engines.options import BuildOptions, PlanOptions

        return BuildOptions(
            max_tokens=self.max_kv_cache_capacity,
            max_input_tokens=self.max_input_len,
            max_slots=self.max_batch_size,
            max_image_tokens=self.max_image_tokens,
            prefill_chunk=self.prefill_chunk,
            plans=plans.make_options() if plans else PlanOptions(),
        )


@dataclass(frozen=True, kw_only=True)
class GenerationFlags:
    """How an answer is chosen and what ends it; None is the release's value."""

    release: options.ReleaseOption = None
    max_new_tokens: options.MaxNewTokensOption = None
    max_thinking_tokens: options.MaxThinkingTokensOption = None
    stop: options.StopOption = None
    temperature: options.TemperatureOption = None
    top_k: options.TopKOption = None
    top_p: options.TopPOption = None
    min_p: options.MinPOption = None
    repetition_penalty: options.RepetitionPenaltyOption = None
    seed: options.SeedOption = None

    def make_wishes(self, *, logprobs: int | None = None) -> "Wishes":
        """Keep what was given, and refuse wrong values before anything is loaded.

        Raises:
            InputError: a value is outside its range.
        """
        from .answering import Wishes

        sampling = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
            "logprobs": logprobs,
        }
        limits = {
            "max_new_tokens": self.max_new_tokens,
            "max_thinking_tokens": self.max_thinking_tokens,
            "stop": tuple(self.stop) if self.stop else None,
        }
        return Wishes.of_flags(sampling, limits)


def with_flag_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command whose parameters include flag groups the signature that typer reads."""
    signature = inspect.signature(command)
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        parameters += _parameters_of(groups[name]) if name in groups else [parameter]

    @functools.wraps(command)
    def call(**values: Any) -> None:  # noqa: ANN401  what typer parsed
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # PEP 362
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameters_of(group: Any) -> list[inspect.Parameter]:  # noqa: ANN401  a dataclass
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, kind, default=field.default, annotation=field.type)
        for field in fields(group)
    ]
