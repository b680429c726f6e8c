"""Where the weights of a CPU engine stay while it runs: mapped from their files, or copied.

Copies lie in large pages, which the memory is read faster from; mapped files take no memory of the
process's own. Copying is chosen where the machine has room for it.
"""

import os
from pathlib import Path
from typing import Literal

from ...artifact.folder import Artifact

WeightsPlace = Literal["auto", "packed", "mapped"]
_SPARE_BYTES = 2 << 30
"""Left free for cache, images and everything else on the machine."""
_MEMORY = Path("/proc/meminfo")


def should_pack(artifact: Artifact, target: str, place: WeightsPlace) -> bool:
    """Tell whether to copy the weights of a target's graphs."""
    if place != "auto":
        return place == "packed"
    return weights_bytes(artifact, target) + _SPARE_BYTES <= available_bytes()


def weights_bytes(artifact: Artifact, target: str) -> int:
    """Add up the weights that a target's graphs brought with them."""
    stems = {Path(graph).stem for graph in artifact.target(target).graphs.values()}
    files = artifact.manifest.files.items()
    own = (one for path, one in files if path.endswith(".bin") and Path(path).stem in stems)
    return sum(one.bytes for one in own)


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    for line in _MEMORY.read_text().splitlines() if _MEMORY.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
