"""How many threads an engine starts: one for each physical core that it may use in full.

Two hardware threads of a core share the units that products keep busy; a second one adds little
and takes cache. A quota of the control group pauses all threads once their time is used, in the
middle of a token; so no more threads start than the quota feeds.

Source: Linux's `Documentation/admin-guide/cgroup-v2.rst` (cpu.max), cgroup-v1 `cpu.cfs_quota_us`,
`Documentation/admin-guide/cputopology.rst`.
"""

import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError

TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True, kw_only=True)
class Cores:
    """What this process may use."""

    allowed: int
    """Processors, as the system counts them: hardware threads."""
    physical: int
    """Cores that these are threads of."""
    quota: float | None
    """Cores' worth of time that the control group gives; None: no limit."""

    @classmethod
    def of_this_process(cls) -> "Cores":
        """Look at affinity, topology and control groups."""
        allowed = os.sched_getaffinity(0)
        return cls(
            allowed=len(allowed),
            physical=count_physical(allowed, TOPOLOGY),
            quota=read_quota(OWN_CGROUPS, CGROUPS),
        )

    @property
    def threads(self) -> int:
        """How many to start."""
        fed = self.physical if self.quota is None else max(1, math.floor(self.quota))
        return min(self.physical, fed)

    @property
    def reason(self) -> str:
        """Why so many."""
        if self.threads < self.physical:
            return f"a quota of {self.quota:g} cores"
        if self.physical < self.allowed:
            return f"one for each of {self.physical} physical cores"
        return "one for each core"


def thread_count(wanted: int | None) -> int:
    """Give the threads of an engine: as many as are wanted, else one for each core to be had.

    Raises:
        InputError: more are wanted than there are processors to run them, or none.
    """
    cores = Cores.of_this_process()
    if wanted is None:
        return cores.threads
    if not 1 <= wanted <= cores.allowed:
        raise InputError(
            f"threads: found {wanted}, expected 1 to {cores.allowed}, the processors that this "
            f"process may use; {cores.threads} are started where nothing is said"
        )
    return wanted


def count_physical(allowed: Collection[int], topology: Path) -> int:
    """Count the cores that processors are threads of.

    Args:
        allowed: numbers of processors.
        topology: a folder `cpuN` for each; one that does not say its siblings is a core.
    """
    return len({_siblings(topology / f"cpu{number}", number) for number in allowed})


def read_quota(own: Path, root: Path) -> float | None:
    """Give the smallest quota of the control groups around this process, in cores; None: none.

    Args:
        own: the file that names the groups, a line each: number, controllers, path.
        root: where the groups are mounted.
    """
    quotas = [quota for folder in _groups(own, root) for quota in _quotas(folder)]
    return min(quotas, default=None)


def _siblings(folder: Path, number: int) -> str:
    text = _read(folder / "topology" / "thread_siblings_list")
    return text or str(number)


def _groups(own: Path, root: Path) -> Iterator[Path]:
    """Yield the folders of the groups, from the process's own outwards.

    In a container the path may be that of the host, and only the root is there.
    """
    for line in _read(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "cpu" if controllers else root
        inside = mounted / path.lstrip("/")
        yield from (inside, *(one for one in inside.parents if one.is_relative_to(mounted)))


def _quotas(folder: Path) -> Iterator[float]:
    """Read a group's limit in either version's form."""
    words = _read(folder / "cpu.max").split()
    words = words or [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    if len(words) == 2 and all(word.isdigit() for word in words):  # others: `max`, -1, nothing
        yield int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    """Return a small file's text, empty where it is not there or not ours to read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
