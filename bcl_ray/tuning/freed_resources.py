"""That an ended trial's CPUs and GPUs come free, whatever ended it.

Ray Train takes them as a placement group. Where its controller is killed, it leaves giving them
back to a process that asks Ray's dashboard whether the controller lives, and there may be none:
so each trial notes its groups with Ray, and the search looks after them.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from bcl_ray.ray_runtime.internals import WorkerGroupCallback
from bcl_ray.ray_runtime.internals import _internal_kv_del as forget
from bcl_ray.ray_runtime.internals import _internal_kv_get as read
from bcl_ray.ray_runtime.internals import _internal_kv_list as listed
from bcl_ray.ray_runtime.internals import _internal_kv_put as note

PATIENCE = 30.0  # seconds after a trial's end in which its resources come free
LOOK = 2.0  # seconds between two looks


class Placed(WorkerGroupCallback):
    """Notes a run's placement groups with Ray; called in the run's controller.

    Args:
        search: its uid.
        run: the trial's name.
    """

    KEEPS_PLACES = True  # Ray Train's own process for that is not needed

    def __init__(self, search: str, run: str) -> None:
        self._search, self._run = search, run

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Note the group that has just been started."""
        handle = worker_group.get_worker_group_state().placement_group_handle
        note(_key(self._search, handle.placement_group.id.hex()), f"{time.time()} {self._run}")


def begins(search: str, run: str) -> None:
    """Note that a run begins, perhaps once more: what it held before, it holds no longer."""
    note(_beginning(search, run), str(time.time()))


def _key(search: str, group: str = "") -> str:
    return f"bcl_ray/tuning/{search}/held/{group}"


def _beginning(search: str, run: str = "") -> str:
    return f"bcl_ray/tuning/{search}/begun/{run}"


@dataclass(frozen=True)
class HeldGroup:
    """A placement group that a trial has, or had.

    Args:
        id: hex digits.
        run: the trial's name.
        since: seconds since 1970 when its workers started.
    """

    id: str
    run: str
    since: float


def overdue(
    groups: list[HeldGroup], begun: dict[str, float], ended: dict[str, float], now: float
) -> list[HeldGroup]:
    """Groups that should be gone: of runs that ended, and from before a run began once more.

    Args:
        groups: those that are still held.
        begun: time at which each run last began, by name; seconds since 1970, as all times.
        ended: time at which each run ended, for those that have.
        now: the time.
    """

    def due(group: HeldGroup) -> float:
        again = begun.get(group.run, 0.0)
        return again if group.since < again else ended.get(group.run, math.inf)

    return [group for group in groups if now - due(group) > PATIENCE]


@dataclass
class ResourceWatcher:
    """Watches in a thread that ended trials hold nothing, and takes it from those that do.

    Args:
        search: its uid.
        notify: called with messages for the user.
    """

    search: str
    notify: Callable[[str], None]
    ended: dict[str, float] = field(default_factory=dict)
    taken: list[HeldGroup] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "ResourceWatcher":
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for key in listed(_beginning(self.search)):
            forget(key)

    def ends(self, run: str) -> None:
        """A run has ended."""
        self.ended[run] = time.time()

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            try:
                self.look()
            except ray.exceptions.RayError as error:
                self.notify(f"what ended trials hold cannot be seen: {error}")

    def look(self) -> list[HeldGroup]:
        """Groups that are still held; those that are overdue are given back."""
        held = _held(self.search)
        begun = {run: float(read(_beginning(self.search, run)) or 0) for run in _runs(held)}
        for group in overdue(held, begun, dict(self.ended), time.time()):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group.id))))
            self.taken.append(group)
            self.notify(
                f"{group.run} still held resources {PATIENCE:.0f} s after its end: they were "
                "taken from it"
            )
        return held


def _runs(groups: list[HeldGroup]) -> set[str]:
    return {group.run for group in groups}


def _held(search: str) -> list[HeldGroup]:
    """Groups that were noted and are not removed yet; those that are gone are forgotten."""
    table = placement_group_table()
    held = []
    for key in listed(_key(search)):
        group = key.decode().rpartition("/")[2]
        if table.get(group, {"state": "REMOVED"})["state"] == "REMOVED":
            forget(key)
            continue
        since, _, run = (read(key) or b"0 ").decode().partition(" ")
        held.append(HeldGroup(group, run, float(since)))
    return held
