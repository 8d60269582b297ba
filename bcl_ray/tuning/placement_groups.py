"""Make sure that the CPUs and GPUs of an ended trial become free, however the trial ended.

Ray Train reserves them as a placement group. If Ray Train's controller is killed, it relies on
another process to remove the group, and that process asks Ray's dashboard, which may not run.
Therefore each trial records its placement groups in Ray's key-value store, and the sweep removes
those that are left.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from bcl_ray.ray_runtime.internals import (
    WorkerGroupCallback,
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)

GRACE_SECONDS = 30.0  # after a trial's end, in which Ray Train frees its resources
CHECK_INTERVAL = 2.0  # seconds between two checks


class PlacementGroupRecorder(WorkerGroupCallback):
    """Records the placement groups of a run; called in the run's controller.

    Args:
        sweep: Uid of the sweep.
        run: Name of the trial.
    """

    REMOVES_PLACEMENT_GROUPS = True  # so Ray Train does not start its own process for that

    def __init__(self, sweep: str, run: str) -> None:
        self._sweep, self._run = sweep, run

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Record the group of workers that have just started."""
        handle = worker_group.get_worker_group_state().placement_group_handle
        key = _held(self._sweep) + handle.placement_group.id.hex()
        _internal_kv_put(key, f"{time.time()} {self._run}")


def record_start(sweep: str, run: str) -> None:
    """Record that a run starts or restarts; it no longer uses groups of an earlier start."""
    _internal_kv_put(_started(sweep) + run, str(time.time()))


def _held(sweep: str) -> str:
    """What the keys of groups that are held begin with; the group's id follows."""
    return f"bcl_ray/tuning/{sweep}/held/"


def _started(sweep: str) -> str:
    """What the keys of starts begin with; the run's name follows."""
    return f"bcl_ray/tuning/{sweep}/started/"


@dataclass(frozen=True)
class HeldGroup:
    """A placement group that a trial holds."""

    id: str  # hex digits
    run: str  # name of the trial
    since: float  # seconds since 1970 when its workers started


def overdue_groups(
    groups: list[HeldGroup], starts: dict[str, float], ends: dict[str, float], now: float
) -> list[HeldGroup]:
    """Groups whose run ended, or restarted with another group, more than GRACE_SECONDS ago.

    All times are seconds since 1970.

    Args:
        groups: Groups that are still held.
        starts: Time of each run's last start, by the run's name.
        ends: Time of each run's end, for runs that have ended.
        now: Current time.
    """

    def obsolete_since(group: HeldGroup) -> float:
        restart = starts.get(group.run, 0.0)
        return restart if group.since < restart else ends.get(group.run, math.inf)

    return [group for group in groups if now - obsolete_since(group) > GRACE_SECONDS]


@dataclass
class ResourceWatcher:
    """A thread that removes the placement groups of ended trials."""

    sweep: str  # uid of the sweep
    notify: Callable[[str], None]  # called with messages for the user
    _ends: dict[str, float] = field(default_factory=dict)  # time of each trial's end, by name
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "ResourceWatcher":
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for key in _internal_kv_list(_started(self.sweep)):
            _internal_kv_del(key)

    def trial_ended(self, run: str) -> None:
        """Take note of the end of a trial."""
        self._ends[run] = time.time()

    def _watch(self) -> None:
        while not self._stop.wait(CHECK_INTERVAL):
            try:
                self._remove_overdue_groups()
            except ray.exceptions.RayError as error:
                self.notify(f"cannot check which resources ended trials still hold: {error}")

    def _remove_overdue_groups(self) -> None:
        held = _held_groups(self.sweep)
        starts = {
            group.run: float(_internal_kv_get(_started(self.sweep) + group.run) or 0)
            for group in held
        }
        for group in overdue_groups(held, starts, dict(self._ends), time.time()):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group.id))))
            self.notify(
                f"{group.run} still held resources {GRACE_SECONDS:.0f} s after its end or restart: "
                "they were taken from it"
            )


def _held_groups(sweep: str) -> list[HeldGroup]:
    """Recorded groups that still exist; the records of removed ones are deleted."""
    table = placement_group_table()
    groups = []
    for key in _internal_kv_list(_held(sweep)):
        group_id = key.decode().rpartition("/")[2]
        if table.get(group_id, {"state": "REMOVED"})["state"] == "REMOVED":
            _internal_kv_del(key)
            continue
        since, _, run = (_internal_kv_get(key) or b"0 ").decode().partition(" ")
        groups.append(HeldGroup(group_id, run, float(since)))
    return groups
