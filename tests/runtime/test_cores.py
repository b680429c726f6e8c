"""Threads of an engine, on machines and in control groups that are made up."""

from pathlib import Path

import pytest

from runtime.cores import Cores, count_physical, read_quota, thread_count
from runtime.errors import InputError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return path


def machine(folder: Path, siblings: dict[int, str]) -> Path:
    for number, text in siblings.items():
        write(folder / f"cpu{number}" / "topology" / "thread_siblings_list", text)
    return folder


SIBLINGS = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}


@pytest.mark.parametrize(
    ("allowed", "physical"),
    [(range(8), 4), ({0, 4}, 1), ({0, 1}, 2), ({0, 1, 4}, 2), ({3}, 1)],
)
def test_hardware_threads_of_a_core_are_one_core(
    tmp_path: Path, allowed: set[int], physical: int
) -> None:
    assert count_physical(allowed, machine(tmp_path, SIBLINGS)) == physical


def test_processors_of_an_unknown_topology_are_cores(tmp_path: Path) -> None:
    assert count_physical({0, 1, 2}, tmp_path / "nothing") == 3
    assert count_physical({0, 4, 9}, machine(tmp_path, SIBLINGS)) == 2


@pytest.mark.parametrize(
    ("groups", "limits", "quota"),
    [
        ("0::/", {}, None),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4.0),
        ("0::/a/b", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "400000 100000"}, 4.0),
        ("0::/not/here", {"cpu.max": "200000 100000"}, 2.0),
        ("3:memory:/m\n1:cpu,cpuacct:/a", {"m/cpu.max": "1 1", "cpu/a/cpu.max": "max 1"}, None),
    ],
)
def test_the_smallest_quota_around_a_process_holds(
    tmp_path: Path, groups: str, limits: dict[str, str], quota: float | None
) -> None:
    own = write(tmp_path / "own", groups)
    for name, text in limits.items():
        write(tmp_path / "cgroup" / name, text)
    assert read_quota(own, tmp_path / "cgroup") == quota


@pytest.mark.parametrize("wanted", [0, -1, 1 << 20])
def test_threads_that_cannot_run_are_refused(wanted: int) -> None:
    most = Cores.of_this_process().allowed
    with pytest.raises(InputError, match=f"found {wanted}, expected 1 to {most}, the processors"):
        thread_count(wanted)
    assert thread_count(most) == most


@pytest.mark.parametrize(("microseconds", "quota"), [("250000", 2.5), ("-1", None)])
def test_quotas_of_the_first_version_are_read_too(
    tmp_path: Path, microseconds: str, quota: float | None
) -> None:
    own = write(tmp_path / "own", "4:memory:/x\n1:cpu,cpuacct:/docker/1")
    group = tmp_path / "cgroup" / "cpu" / "docker" / "1"
    write(group / "cpu.cfs_quota_us", microseconds)
    write(group / "cpu.cfs_period_us", "100000")
    assert read_quota(own, tmp_path / "cgroup") == quota
    assert read_quota(tmp_path / "nothing", tmp_path / "cgroup") is None


@pytest.mark.parametrize(
    ("cores", "threads", "reason"),
    [
        (Cores(allowed=8, physical=8, quota=None), 8, "one for each core"),
        (Cores(allowed=8, physical=4, quota=None), 4, "one for each of 4 physical cores"),
        (Cores(allowed=8, physical=4, quota=6.0), 4, "one for each of 4 physical cores"),
        (Cores(allowed=8, physical=4, quota=2.9), 2, "a quota of 2.9 cores"),
        (Cores(allowed=8, physical=4, quota=0.5), 1, "a quota of 0.5 cores"),
    ],
)
def test_no_more_threads_start_than_cores_and_quota_feed(
    cores: Cores, threads: int, reason: str
) -> None:
    assert (cores.threads, cores.reason) == (threads, reason)


def test_what_is_asked_for_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Cores(allowed=4, physical=2, quota=None)
    monkeypatch.setattr(Cores, "of_this_process", lambda: two)
    assert (thread_count(None), thread_count(3)) == (2, 3)
