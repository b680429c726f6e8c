"""The build stage: lower an artifact's neutral graphs to one target and note it in the manifest."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx_ir as ir

from export.graph.journal import Journal, key_of, remove_journal
from export.graph.weights_file import WEIGHTS_FOLDER, bind_weights, write_weights
from export.recipe.reading import recipe_from_values
from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import FileRecord, Manifest, TargetRecord
from runtime.config import KimiVLConfig
from runtime.errors import ArtifactError, InputError, UnsupportedError
from runtime.files import announced, exclusive, sha256_of, write_bytes
from runtime.limits import Limits
from runtime.progress import Progress, silent
from runtime.prompt.patches import ImageRule, max_patches

from . import cpu
from .cache_layout import cache_record
from .lowering import Lowered, Pass, lower
from .targets import TARGETS

STAGE = "build"
DEFAULT_MAX_TOKENS = 8192
DEFAULT_PREFILL_CHUNK = 512

PASSES: dict[str, Callable[[], list[Pass]]] = {"cpu": cpu.passes}
"""The lowering of each target, in order."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The sizes to build for; None means a default that the checkpoint decides."""

    max_tokens: int | None = None
    max_input_tokens: int | None = None
    max_slots: int = 1
    max_image_tokens: int | None = None
    prefill_chunk: int = DEFAULT_PREFILL_CHUNK

    def limits(self, config: KimiVLConfig, rule: ImageRule) -> Limits:
        """Turn the options into limits.

        Raises:
            InputError: a size is not positive or larger than the model allows.
        """
        positions = config.decoder.max_positions
        max_tokens = _given_or(self.max_tokens, min(DEFAULT_MAX_TOKENS, positions))
        max_input_tokens = _given_or(self.max_input_tokens, max_tokens)
        image_tokens, largest = self.max_image_tokens, max_patches(rule)
        limits = Limits(
            max_tokens=max_tokens,
            max_input_tokens=max_input_tokens,
            max_slots=self.max_slots,
            max_patches=largest if image_tokens is None else min(4 * image_tokens, largest),
            prefill_chunk=min(self.prefill_chunk, max_tokens),
        )
        wrong = [name for name, value in asdict(limits).items() if value < 1]
        if wrong:
            raise InputError(f"limits: {', '.join(wrong)} must be at least 1")
        if max_tokens < 2:
            raise InputError("a cache of 1 token holds no prompt with an answer; give 2 or more")
        if max_tokens > positions:
            raise InputError(
                f"a cache of {max_tokens} tokens: the model was made for at most {positions}; "
                f"use --max-kv-cache-capacity {positions}"
            )
        if max_input_tokens > max_tokens:
            raise InputError(
                f"a prompt of {max_input_tokens} tokens does not fit a cache of {max_tokens}; "
                "raise --max-kv-cache-capacity or lower --max-input-len"
            )
        return limits


def check_build(
    target: str, options: BuildOptions, config: KimiVLConfig, model_folder: Path
) -> Limits:
    """Return the limits of a build, refusing what it would refuse, before anything slow.

    Raises:
        UnsupportedError: there is no such target.
        InputError: a size is not possible for this model.
    """
    if target not in PASSES:
        raise UnsupportedError(f"target {target!r}: known ones are {', '.join(PASSES)}")
    return options.limits(config, ImageRule.load(model_folder))


def _given_or(value: int | None, default: int) -> int:
    return default if value is None else value


@announced(STAGE)
def build_target(
    folder: Path, target: str, options: BuildOptions, progress: Progress = silent
) -> Manifest:
    """Lower all graphs of an artifact for a target; resume or reuse what is already there.

    Raises:
        ArtifactError: the folder is incomplete or altered.
        UnsupportedError: there is no such target.
    """
    artifact = Artifact.open(folder)
    with exclusive(folder):
        return _build(artifact, target, options, progress)


def _build(artifact: Artifact, target: str, options: BuildOptions, progress: Progress) -> Manifest:
    folder = artifact.folder
    config = KimiVLConfig.load(artifact.model_folder / "config.json")
    limits = check_build(target, options, config, artifact.model_folder)
    passes = PASSES[target]()
    manifest = artifact.manifest
    recipe = recipe_from_values(manifest.precision, manifest.recipe, str(folder))
    base = TARGETS[target].cache_type(recipe)
    record = TargetRecord(
        graphs={name: _lowered_path(path, target) for name, path in manifest.graphs.items()},
        cache=cache_record(config.decoder, recipe.cache, base),
        limits=limits,
        passes=tuple(step.name for step in passes),
    )
    stage = f"{STAGE}-{target}"
    if manifest.targets.get(target) == record:
        remove_journal(folder, stage)
        return manifest
    present = manifest.targets.get(target)
    if present is not None and replace(present, limits=limits) == record:  # the graphs stay
        manifest = replace(manifest, targets={**manifest.targets, target: record})
        manifest.write(folder)
        remove_journal(folder, stage)
        return manifest
    if target in manifest.targets:  # so that no kill leaves new files under old hashes
        manifest = _without_target(manifest, target)
        manifest.write(folder)
    neutral = {name: manifest.files[path].sha256 for name, path in manifest.graphs.items()}
    key = key_of({"target": target, "passes": list(record.passes), "neutral": neutral})
    journal = Journal(folder, stage, key)
    for done, (name, path) in enumerate(manifest.graphs.items(), start=1):
        _build_graph(folder, path, record.graphs[name], passes, journal)
        progress(STAGE, done, len(manifest.graphs))
    manifest = manifest.with_target(target, record, dict(sorted(journal.files.items())))
    manifest.write(folder)
    journal.close()
    return manifest


def _build_graph(
    folder: Path, source: str, result: str, passes: list[Pass], journal: Journal
) -> None:
    """Lower one graph: its new weights first, then the graph that names them."""
    place = Path(result)
    location = f"{WEIGHTS_FOLDER}/{place.stem}.bin"
    weights = (place.parent / location).as_posix()
    if journal.has(result) and (weights not in journal.files or journal.has(weights)):
        return
    lowered = lower(_load(folder / source), passes)
    if lowered.new_weights:
        journal.ensure(weights, lambda path: write_weights(path, lowered.new_weights))
        bind_weights(lowered.model.graph, lowered.new_weights, location)
    journal.ensure(result, lambda path: _write_model(lowered, path))


def _load(path: Path) -> ir.Model:
    try:
        return ir.load(path)
    except Exception as error:  # the parser raises many types without a common base
        raise ArtifactError(f"{path}: not an ONNX graph; export the checkpoint again") from error


def _write_model(lowered: Lowered, path: Path) -> FileRecord:
    write_bytes(path, ir.to_proto(lowered.model).SerializeToString(deterministic=True))
    return FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path))


def _lowered_path(path: str, target: str) -> str:
    """`graphs/layer_00.onnx` to `graphs/layer_00.cpu.onnx`: beside the weights that both read."""
    return f"{path.removesuffix('.onnx')}.{target}.onnx"


def _without_target(manifest: Manifest, target: str) -> Manifest:
    """Forget a target, its figures and its files, which are told by their names."""
    files = {
        path: record
        for path, record in manifest.files.items()
        if not Path(path).stem.endswith(f".{target}")
    }
    targets = {name: record for name, record in manifest.targets.items() if name != target}
    parity = {name: figures for name, figures in manifest.parity.items() if name != target}
    return replace(manifest, files=files, targets=targets, parity=parity)
