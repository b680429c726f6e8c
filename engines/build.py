"""The build stage: what a target runs, made of an artifact's neutral graphs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from export.graph.journal import Journal, remove_journal
from export.recipe.reading import recipe_from_values
from export.recipe.recipe import Recipe
from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.config import KimiVLConfig
from runtime.errors import InputError, UnsupportedError, describe_problems
from runtime.files import announced, resolve_inside
from runtime.limits import Limits
from runtime.progress import Progress, silent
from runtime.prompt.patches import ImageRule

from .cache_layout import cache_record
from .cpu.build import CpuBuild
from .cuda.build import CudaBuild
from .former_limits import forget_limits, former_limits, note_limits
from .job import STAGE, Job, TargetBuild, file_name
from .options import BuildOptions, PlanOptions, check_cache
from .targets import find_target, refusals, single_targets
from .trt.build import ENGINES_FOLDER, TensorRTBuild
from .trt.home import Home
from .trt.shapes import aligned_limits, limits_before_alignment
from .trt.sm import parse_target

_T = TypeVar("_T")
_KINDS: dict[str, Callable[[Job], TargetBuild]] = {"cpu": CpuBuild, "cuda": CudaBuild}
"""How targets of ONNX Runtime are built; all others are TensorRT's."""


def check_build(
    target: str,
    options: BuildOptions,
    config: KimiVLConfig,
    model_folder: Path,
    recipe: Recipe,
    *,
    num_layers: int | None = None,
    former: Limits | None = None,
) -> Limits:
    """Return the limits of a build, refusing what it would refuse, before anything slow.

    Args:
        target: to build for.
        options: what was asked for.
        config: of the model.
        model_folder: with its image rule.
        recipe: of the artifact.
        num_layers: decoder layers that are kept; None: all.
        former: the limits that the target was built for before, if it was.

    Raises:
        UnsupportedError: there is no such target, or it cannot take the recipe.
        InputError: a size is not possible for this model, or options contradict each other.
        CapacityError: no machine can hold the cache.
    """
    _check_name(target)
    _check_plans(target, options.plans)
    reasons = [
        f"{single.name} has {reason}"
        for single in single_targets(target)
        for reason in refusals(single, recipe)
    ]
    if reasons:
        raise UnsupportedError(
            describe_problems(f"recipe {recipe.name} for target {target}", reasons)
        )
    rule = ImageRule.load(model_folder)
    if target in _KINDS:
        limits = options.limits(config, rule, former)
        base = find_target(target).cache_type(recipe)
        cache = cache_record(config.decoder, recipe.cache, base)
    else:
        Home.load(parse_target(target).home)
        cache = cache_record(config.decoder, None, recipe.base)
        asked = None if former is None else limits_before_alignment(former, cache)
        limits = aligned_limits(options.limits(config, rule, asked), cache)
    layers = config.decoder.num_layers if num_layers is None else num_layers
    check_cache(limits, cache.token_bytes * layers)
    return limits


def _check_name(target: str) -> None:
    """Refuse what is no target, and a second name for one."""
    several = target.startswith("rtx:") and "+" in target
    name = parse_target(target).name if several else find_target(target).name
    if name != target:
        raise UnsupportedError(f"target {target!r}: write it {name!r}")


def _check_plans(target: str, plans: PlanOptions) -> None:
    """Refuse options that contradict each other or the target."""
    problems = []
    if target in _KINDS and plans != PlanOptions():
        problems.append(f"target {target} has no plans: leave out what is about TensorRT")
    if plans.weights == "embedded" and plans.layers_per_engine > 1:
        problems.append("--layers-per-engine needs --weights external")
    if plans.use_quick_plugins and not plans.use_plugins:
        problems.append("--quick-plugins and --no-plugins contradict each other")
    if plans.use_quick_plugins and (target != "trt" or plans.weights != "external"):
        problems.append("--quick-plugins is for target trt with --weights external")
    if problems:
        raise InputError(describe_problems(f"building for {target}", problems))


@announced(STAGE)
def build_target(
    folder: Path, target: str, options: BuildOptions, progress: Progress = silent
) -> Manifest:
    """Make what a target runs; resume or reuse what is already there.

    Limits that the options leave out stay as the target has them.

    Raises:
        ArtifactError: the folder is incomplete or altered.
        UnsupportedError: there is no such target, or it cannot take the artifact's recipe.
        KimiVLError: another run writes to the folder now.
    """
    with Artifact.to_change(folder) as artifact:
        return _build(artifact, target, options, progress)


def _build(artifact: Artifact, target: str, options: BuildOptions, progress: Progress) -> Manifest:
    folder, manifest = artifact.folder, artifact.manifest
    job = _job(artifact, target, options)
    limits, build = job.limits, _kind_of(target)(job)
    stage, present = f"{STAGE}-{file_name(target)}", manifest.targets.get(target)
    if present is not None and present.key == build.key:  # its files stay
        if present.limits != limits:
            record = replace(present, limits=limits)
            manifest = replace(manifest, targets={**manifest.targets, target: record})
            manifest.write(folder)
        remove_journal(folder, stage)
        forget_limits(folder, target)
        return manifest
    if present is not None:  # so that no kill leaves new files under old hashes
        note_limits(folder, target, present.limits)
        manifest = _without_target(manifest, target)
        manifest.write(folder)
    _unlink(folder, artifact.manifest.files.keys() - manifest.files.keys())
    journal = Journal.replacing(folder, stage, build.key)
    record = build.make(journal, progress)
    manifest = manifest.with_target(target, record, dict(sorted(journal.files.items())))
    manifest.write(folder)
    journal.close()
    forget_limits(folder, target)
    return manifest


def _job(artifact: Artifact, target: str, options: BuildOptions) -> Job:
    """Check what is wanted against what is there."""
    folder, manifest = artifact.folder, artifact.manifest
    config = KimiVLConfig.load(artifact.model_folder / "config.json")
    recipe = recipe_from_values(manifest.precision, manifest.recipe, str(folder))
    limits = check_build(
        target,
        options,
        config,
        artifact.model_folder,
        recipe,
        num_layers=len(manifest.layers),
        former=former_limits(folder, manifest, target),
    )
    return Job(
        folder=folder,
        target=target,
        manifest=manifest,
        config=config,
        recipe=recipe,
        limits=limits,
        options=options,
    )


def _unlink(folder: Path, paths: Iterable[str]) -> None:
    """Remove files of ours that no manifest lists any more."""
    for path in paths:
        resolve_inside(folder, path).unlink(missing_ok=True)


def _kind_of(target: str) -> Callable[[Job], TargetBuild]:
    return _KINDS.get(target, TensorRTBuild)


def _without_target(manifest: Manifest, target: str) -> Manifest:
    """Forget a target, its figures and its files, which are told by their names."""
    name = file_name(target)
    files = {
        path: record
        for path, record in manifest.files.items()
        if not Path(path).stem.endswith(f".{name}")
        and not path.startswith(f"{ENGINES_FOLDER}/{name}/")
    }
    return replace(
        manifest,
        files=files,
        targets=_but(manifest.targets, target),
        parity=_but(manifest.parity, target),
        prices=_but(manifest.prices, target),
        devices=_but(manifest.devices, target),
    )


def _but(values: Mapping[str, _T], name: str) -> dict[str, _T]:
    return {key: value for key, value in values.items() if key != name}
