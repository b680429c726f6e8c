"""Whether a recipe fits a model's shapes: the groups of a matrix must divide its inputs."""

import re
from collections.abc import Sequence

from runtime.config import KimiVLConfig

from .recipe import Part, Recipe, WeightFormat
from .sizes import Parameter, parameters

_INT4_GROUPS = (128, 64, 32)
_CACHE_GROUPS = (128, 64, 32, 16)
_FP4_GROUP = 16


def check_recipe(recipe: Recipe, config: KimiVLConfig) -> list[str]:
    """Name every part whose groups do not divide the inputs of a matrix, and what would.

    Needs no torch and no weights, so that it can be asked before anything slow.

    Args:
        recipe: any; parts in the base type or without groups always fit.
        config: sizes of the model.

    Returns:
        A problem for each part that does not fit; empty if the whole recipe does.
    """
    problems = []
    found = parameters(config)
    for part, chosen in recipe.parts.items():
        matrices = [parameter for parameter in found if parameter.part == part]
        if not fits(chosen.weights, matrices):
            problems.append(_describe(part, chosen.weights, matrices))
    rank = config.decoder.latent_rank
    if recipe.cache is not None and rank % recipe.cache.group:
        works = [group for group in _CACHE_GROUPS if rank % group == 0]
        problems.append(
            f"parts.cache: groups of {recipe.cache.group} do not divide the latent ({rank}): "
            f"use {' or '.join(f'group = {group}' for group in works) or 'the base type'}"
        )
    return problems


def fits(form: WeightFormat, matrices: Sequence[Parameter]) -> bool:
    """Tell whether the groups of a format divide the inputs of all matrices."""
    return form.group is None or all(matrix.inputs % form.group == 0 for matrix in matrices)


def _describe(part: Part, form: WeightFormat, matrices: Sequence[Parameter]) -> str:
    wrong = {_kind(matrix.name): matrix.inputs for matrix in matrices if not fits(form, [matrix])}
    named = ", ".join(f"{name} ({inputs})" for name, inputs in wrong.items())
    return (
        f"parts.{part}: groups of {form.group} ({form.codes}) do not divide the inputs of {named}: "
        f"use {' or '.join(_alternatives(matrices))}"
    )


def _kind(name: str) -> str:
    """Name all matrices of a kind at once: `blocks.3.mlp.fc1.weight` to `blocks.*.mlp.fc1`."""
    return re.sub(r"\.\d+\.", ".*.", name).removesuffix(".weight")


def _alternatives(matrices: Sequence[Parameter]) -> list[str]:
    groups = [
        group for group in _INT4_GROUPS if fits(WeightFormat(codes="int4", group=group), matrices)
    ]
    found = [f"int4 with group = {group}" for group in groups]
    if fits(WeightFormat(codes="nvfp4", group=_FP4_GROUP), matrices):
        found.append(f"nvfp4 (groups of {_FP4_GROUP})")
    return [*found, "int8 without a group", "fp8 without a group"]
