"""What an artifact amounts to, in a few named values that several commands print."""

import shlex
from pathlib import Path
from typing import Any

from runtime.artifact.manifest import Manifest


def artifact_summary(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Name what was made."""
    return {
        "artifact": str(folder),
        "recipe": manifest.recipe,
        "layers": list(manifest.layers),
        "targets": list(manifest.targets),
        "files": len(manifest.files) + 1,
        "size_bytes": sum(record.bytes for record in manifest.files.values()),
    }


def command_text(*words: str | Path) -> str:
    """Write a command of this tool so that a shell takes it as it is."""
    return shlex.join(["python", "tool.py", *map(str, words)])
