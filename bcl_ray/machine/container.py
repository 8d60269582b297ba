"""CPUs and memory that this process may use, and how much of them is in use.

A container, a pod and a Slurm job are control groups, which may have less than the machine. Both
versions of control groups are read (cgroup-v1/*.rst and cgroup-v2.rst of the kernel's
documentation). Groups are nested: the one with the lowest limit counts, and groups that may use the
whole machine are ignored.
"""

import functools
import math
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

GROUPS, MOUNTS = Path("/proc/self/cgroup"), Path("/proc/self/mountinfo")
CONTROLLERS = {"cpu", "cpuacct", "cpuset", "memory"}
CPUSET_FILES = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")

# The folders of one control group: version 1 has one in each hierarchy.
Group = list[Path]


class Share(NamedTuple):
    """Limit and use of a resource by a control group."""

    limit: float
    """CPUs, or bytes."""
    used: float
    """CPU seconds since the group began, or bytes without inactive pages of files."""


def cpus() -> float:
    """CPUs that this process may use, at least 1; may be a fraction."""
    affinity, share = float(len(os.sched_getaffinity(0))), cpu_share()
    return max(1.0, min(affinity, share.limit) if share else affinity)


def memory_bytes() -> float:
    """Bytes of memory that this process may use."""
    share = memory_share()
    return share.limit if share else _machine_bytes()


def cpu_share() -> Share | None:
    """CPUs of the control group with the fewest; None if no group has fewer than the machine."""
    return _smallest(_cpu_share)


def memory_share() -> Share | None:
    """Memory of the control group with the least; None if no group has less than the machine."""
    return _smallest(_memory_share)


def _smallest(read: Callable[[Group], Share | None]) -> Share | None:
    shares = (read(group) for group in _groups())
    return min((share for share in shares if share), key=lambda share: share.limit, default=None)


def _cpu_share(group: Group) -> Share | None:
    quota_and_period = _words(group, "cpu.max") or (
        _words(group, "cpu.cfs_quota_us") + _words(group, "cpu.cfs_period_us")
    )
    limit = math.inf
    if len(quota_and_period) > 1:
        limit = _limit(quota_and_period[:1]) / float(quota_and_period[1])
    if cpu_list := next(filter(None, (_words(group, name) for name in CPUSET_FILES)), None):
        limit = min(limit, _count_cpus(cpu_list[0]))
    stat, nanoseconds = _fields(group, "cpu.stat"), _words(group, "cpuacct.usage")
    if limit >= (os.cpu_count() or 1) or not ("usage_usec" in stat or nanoseconds):
        return None
    used = stat["usage_usec"] / 1e6 if "usage_usec" in stat else float(nanoseconds[0]) / 1e9
    return Share(limit, used)


def _memory_share(group: Group) -> Share | None:
    limit = _limit(_words(group, "memory.max") or _words(group, "memory.limit_in_bytes"))
    used = _words(group, "memory.current") or _words(group, "memory.usage_in_bytes")
    if limit >= _machine_bytes() or not used:
        return None
    stat = _fields(group, "memory.stat")
    # In version 1, the field without `total_` leaves out the groups below this one.
    inactive = stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return Share(limit, max(float(used[0]) - inactive, 0.0))


def _machine_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _limit(words: list[str]) -> float:
    return math.inf if not words or words[0] in ("max", "-1") else float(words[0])


def _count_cpus(cpu_list: str) -> float:
    """The number of CPUs in a list such as 0-2,5."""
    ranges = [part.partition("-") for part in cpu_list.split(",")]
    return float(sum(int(last or first) - int(first) + 1 for first, _, last in ranges))


def _words(group: Group, name: str) -> list[str]:
    """The words in a file of a group; empty if no hierarchy has the file."""
    for folder in group:
        try:
            return (folder / name).read_text().split()
        except OSError:
            continue
    return []


def _fields(group: Group, name: str) -> dict[str, int]:
    """The fields in a file of a group that has one field per line."""
    words = _words(group, name)
    return dict(zip(words[::2], map(int, words[1::2]), strict=False))


def _groups() -> list[Group]:
    """The control group of this process and those around it, as far as they are visible."""
    try:
        return _parse_groups(GROUPS.read_text(), MOUNTS.read_text())
    except OSError:  # not Linux
        return []


@functools.lru_cache(maxsize=4)  # parsing takes longer than all the rest
def _parse_groups(groups: str, mounts: str) -> list[Group]:
    """Parse /proc/self/cgroup and /proc/self/mountinfo."""
    parsed: dict[PurePosixPath, Group] = {}
    for line in groups.splitlines():
        _, names, path = line.split(":", 2)
        controllers = set(filter(None, names.split(",")))  # empty for version 2
        if controllers <= CONTROLLERS:
            for group, folder in _folders(mounts, controllers, PurePosixPath(path)):
                parsed.setdefault(group, []).append(folder)
    return list(parsed.values())


def _folders(
    mounts: str, controllers: set[str], path: PurePosixPath
) -> Iterator[tuple[PurePosixPath, Path]]:
    """Groups of a hierarchy from the process's own to the outermost, each with its folder."""
    for line in mounts.splitlines():
        # number parent device ROOT FOLDER options ... - TYPE source OPTIONS
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _, options = after.split(maxsplit=2)
        is_kind = kind == ("cgroup" if controllers else "cgroup2")
        if is_kind and controllers <= set(options.split(",")):
            break
    else:
        return
    if not path.is_relative_to(root):  # in a namespace, the mount is the process's own group
        yield path, Path(mount)
        return
    for group in (path, *path.parents):
        if group.is_relative_to(root):
            yield group, Path(mount) / group.relative_to(root)


def processor() -> str:
    """The name of this machine's processor; its architecture if the name is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
