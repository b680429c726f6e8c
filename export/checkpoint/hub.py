"""Where a checkpoint comes from: a folder, or an id that the Hugging Face cache resolves.

Does not know: what the files hold. Code files are never fetched.
"""

import re
from pathlib import Path

from runtime.errors import CheckpointError

from .files import INDEX_FILE, TEXT_FILES

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATTERNS = (*TEXT_FILES, INDEX_FILE, "model*.safetensors")


def resolve_folder(source: str | Path, revision: str | None) -> Path:
    """Turn a source into a folder; an existing folder wins over a hub id of the same spelling.

    Args:
        source: a folder, or `owner/name`.
        revision: branch, tag or commit of a hub id; a folder has none.

    Raises:
        CheckpointError: no such folder, or the hub does not give the files.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{folder}: a folder has no revision {revision!r}; leave it out")
        return folder
    if isinstance(source, str) and HUB_ID.fullmatch(source) and not folder.exists():
        return _download(source, revision)
    state = "not a folder" if folder.exists() else "no such folder"
    raise CheckpointError(f"{folder}: {state}; give a checkpoint folder or a hub id owner/name")


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # only hub ids need it and its HTTP stack

    try:
        folder = snapshot_download(hub_id, revision=revision, allow_patterns=list(PATTERNS))
    except Exception as error:
        # Its HTTP stack differs by version and lets errors of its own through.
        raise CheckpointError(_describe_failure(hub_id, error)) from error
    return Path(folder)


def _describe_failure(hub_id: str, error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{hub_id}: no such folder, and the hub cannot be reached for what is not in its "
            "cache; go online or give a checkpoint folder"
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"{hub_id}: no such folder, and the hub has no such model or wants a login"
    reason = " ".join(str(error).split())[:200]
    return f"{hub_id}: the hub did not give the files: {type(error).__name__}: {reason}"
