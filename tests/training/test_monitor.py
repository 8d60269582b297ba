"""What the driver does with the events of a run's workers, without Ray's processes."""

from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from bcl_ray.training import monitor as module
from bcl_ray.training.monitor import RunMonitor

EVENTS = [
    {"kind": "start", "workers": 2, "precision": "float32", "residency": "device"},
    {"kind": "step"},
    {"kind": "start", "workers": 1, "precision": "float32", "residency": "device"},
    {"kind": "stop"},
]


@pytest.fixture
def monitor(monkeypatch):
    """A function that lets a monitor handle EVENTS."""

    def handle(tracker, follow, on_start) -> RunMonitor:
        channel = SimpleNamespace(take=SimpleNamespace(remote=lambda: EVENTS))
        made = RunMonitor(channel, tracker, follow, on_start=on_start)
        made.run()
        return made

    monkeypatch.setattr(module, "NodeSamplers", lambda *_, **__: None)
    monkeypatch.setattr(module.ray, "get", lambda value: value)
    return handle


def tracker(tags=lambda _: None) -> SimpleNamespace:
    return SimpleNamespace(tags=tags, page=None)


def test_each_start_of_workers_is_reported_with_their_number_before_any_step(monitor):
    starts, shown = [], []
    done = monitor(tracker(), shown.append, lambda workers: starts.append((len(shown), workers)))
    assert done.failure is None
    assert starts == [(0, 2), (2, 1)]
    assert shown == EVENTS[:-1]


@pytest.mark.parametrize("broken", ["tracking", "display"])
def test_the_start_of_the_workers_is_reported_after_an_error(monitor, broken):
    def fail(_):
        raise OSError("no space left on device")

    starts, shown = [], []
    done = monitor(
        tracker(fail) if broken == "tracking" else tracker(),
        fail if broken == "display" else shown.append,
        starts.append,
    )
    assert str(done.failure) == "no space left on device"
    assert shown == [], "after an error events are no longer shown"
    assert starts == [2, 1]
