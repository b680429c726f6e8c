"""What `config.pbtxt` says to the conversational model, checked before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, UnsupportedError, describe_problems
from ..scheduling.options import SchedulerOptions
from . import tensors

_REQUIRED = (tensors.ARTIFACT, tensors.MANIFEST_SHA256, tensors.TARGET)
_COUNTS = (tensors.MAX_QUEUED, tensors.IMAGE_CACHE_BYTES, tensors.CHUNK_BESIDE_DECODING)
"""Fields of `SchedulerOptions`, by their names."""
_OF_THE_SERVER = ("EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS")
"""Parameters that the server's Python backend reads itself."""
_KNOWN = {
    *(*_REQUIRED, *_COUNTS, *_OF_THE_SERVER),
    *(tensors.MAX_IMAGES, tensors.THREADS, tensors.RELEASE),
}
DEFAULT_MAX_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of one model."""

    name: str
    artifact: str
    """Absolute, or relative to the folder of `model.py`."""
    manifest_sha256: str
    target: str
    scheduler: SchedulerOptions
    max_images: int = DEFAULT_MAX_IMAGES
    """Of one request; they are counted before any is decoded."""
    num_threads: int | None = None
    """All, if None."""
    release: str | None = None
    """Told from the artifact, if None."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Settings":
        """Read the configuration that the server hands over.

        Args:
            config: of JSON; parameters are `{"name": {"string_value": "..."}}`.

        Raises:
            InputError: parameters are missing, unknown or no numbers; all are named at once.
            UnsupportedError: more than one instance.
        """
        name = config["name"]
        _check_instances(name, config)
        given = {key: one["string_value"] for key, one in config.get("parameters", {}).items()}
        problems = [f"{one} is missing" for one in _REQUIRED if not given.get(one)]
        problems += [f"{one} is not known" for one in sorted(given.keys() - _KNOWN)]
        counts: dict[str, int] = {}
        for key in (*_COUNTS, tensors.MAX_IMAGES, tensors.THREADS):
            if key in given and not given[key].isdecimal():
                problems.append(f"{key}: expected a whole number, found {given[key]!r}")
            elif key in given:
                counts[key] = int(given[key])
        if problems:
            raise InputError(describe_problems(f"parameters of {name}", problems))
        return cls(
            name=name,
            artifact=given[tensors.ARTIFACT],
            manifest_sha256=given[tensors.MANIFEST_SHA256],
            target=given[tensors.TARGET],
            scheduler=SchedulerOptions(**{key: counts[key] for key in _COUNTS if key in counts}),
            max_images=counts.get(tensors.MAX_IMAGES, DEFAULT_MAX_IMAGES),
            num_threads=counts.get(tensors.THREADS),
            release=given.get(tensors.RELEASE),
        )


def _check_instances(name: str, config: Mapping[str, Any]) -> None:
    # A group has its count on each of its GPUs.
    count = sum(
        int(group.get("count", 1)) * max(1, len(group.get("gpus", [])))
        for group in config.get("instance_group", [])
    )
    if count > 1:
        raise UnsupportedError(
            f"{name}: {count} instances: one holds the weights and all slots; set instance_group "
            "to one of count 1, build with a larger --max-batch-size, and run another server for "
            "each further device"
        )
