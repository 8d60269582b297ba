"""What this process may use of its machine, and what of that is in use: CPUs and memory.

A container, a pod or a job of Slurm is a control group: it may have less than its machine, and
what the machine does is not what it does. Files of both versions are read (cgroup-v1/*.rst and
cgroup-v2.rst of the kernel's documentation). Groups lie within each other: the one that may use
the least counts, and none does that may use the whole machine.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

GROUPS, MOUNTS = Path("/proc/self/cgroup"), Path("/proc/self/mountinfo")
CONTROLLERS = {"cpu", "cpuacct", "cpuset", "memory"}
CPUSETS = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")

Level = list[Path]  # folders of one group, one of each hierarchy that has it


class Share(NamedTuple):
    """What a group may use, and what it uses."""

    limit: float
    """CPUs, or bytes."""
    used: float
    """Seconds of CPUs since the group began; or bytes, without pages of files that lie idle."""


def cpus() -> float:
    """CPUs that this process may use, at least 1; a fraction where its group's quota is one."""
    bound, share = float(len(os.sched_getaffinity(0))), cpu()
    return max(1.0, min(bound, share.limit) if share else bound)


def memory_bytes() -> float:
    """Bytes of memory that this process may use."""
    share = memory()
    return share.limit if share else _machine_bytes()


def cpu() -> Share | None:
    """CPUs of the group that may use the fewest; None where none has fewer than the machine."""
    return _least(_cpu)


def memory() -> Share | None:
    """Memory of the group that may use the least; None where none has less than the machine."""
    return _least(_memory)


def _least(read: Callable[[Level], Share | None]) -> Share | None:
    shares = (read(level) for level in _levels())
    return min((share for share in shares if share), key=lambda share: share.limit, default=None)


def _cpu(level: Level) -> Share | None:
    words = _words(level, "cpu.max")
    words = words or _words(level, "cpu.cfs_quota_us") + _words(level, "cpu.cfs_period_us")
    quota = _limit(words[:1]) / float(words[1]) if len(words) > 1 else math.inf
    listed = next(filter(None, (_words(level, name) for name in CPUSETS)), [])
    limit = min(quota, _set_size(listed[0]) if listed else math.inf)
    stat, nanoseconds = _fields(level, "cpu.stat"), _words(level, "cpuacct.usage")
    if limit >= (os.cpu_count() or 1) or not ("usage_usec" in stat or nanoseconds):
        return None
    used = stat["usage_usec"] / 1e6 if "usage_usec" in stat else float(nanoseconds[0]) / 1e9
    return Share(limit, used)


def _memory(level: Level) -> Share | None:
    limit = _limit(_words(level, "memory.max") or _words(level, "memory.limit_in_bytes"))
    used = _words(level, "memory.current") or _words(level, "memory.usage_in_bytes")
    if limit >= _machine_bytes() or not used:
        return None
    stat = _fields(level, "memory.stat")  # version 1 has it of the group alone, too
    idle = stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return Share(limit, max(float(used[0]) - idle, 0.0))


def _machine_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _limit(words: list[str]) -> float:
    return math.inf if not words or words[0] in ("max", "-1") else float(words[0])


def _set_size(listed: str) -> float:
    """How many CPUs a list such as 0-2,5 has."""
    ends = [part.partition("-") for part in listed.split(",")]
    return float(sum(int(last or first) - int(first) + 1 for first, _, last in ends))


def _words(level: Level, name: str) -> list[str]:
    """What a group's file says; nothing where no hierarchy has the file."""
    for folder in level:
        try:
            return (folder / name).read_text().split()
        except OSError:
            continue
    return []


def _fields(level: Level, name: str) -> dict[str, int]:
    """What a group's file of one field a line says."""
    words = _words(level, name)
    return dict(zip(words[::2], map(int, words[1::2]), strict=False))


def _levels() -> list[Level]:
    """Groups of this process, and those around it as far as they can be seen."""
    try:
        return _parsed(GROUPS.read_text(), MOUNTS.read_text())
    except OSError:  # not a Linux
        return []


@functools.lru_cache(maxsize=4)  # parsing takes longer than all the rest
def _parsed(groups: str, mounts: str) -> list[Level]:
    found: dict[PurePosixPath, Level] = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        wanted = set(filter(None, controllers.split(",")))
        if wanted <= CONTROLLERS:  # version 2 has one hierarchy, which names none
            for group, folder in _folders(mounts, wanted, PurePosixPath(path)):
                found.setdefault(group, []).append(folder)
    return list(found.values())


def _folders(
    mounts: str, controllers: set[str], path: PurePosixPath
) -> Iterator[tuple[PurePosixPath, Path]]:
    """A hierarchy's groups from a process's own to the outermost, each with its folder."""
    for line in mounts.splitlines():
        # number parent device ROOT PLACE options ... - TYPE source OPTIONS
        before, _, after = line.partition(" - ")
        root, place = before.split()[3:5]
        kind, _, options = after.split(maxsplit=2)
        has = set(options.split(","))
        if kind == ("cgroup" if controllers else "cgroup2") and controllers <= has:
            break
    else:
        return
    if not path.is_relative_to(root):  # as a namespace has it: the place is its own group
        yield path, Path(place)
        return
    for group in (path, *path.parents):
        if group.is_relative_to(root):
            yield group, Path(place) / group.relative_to(root)
