"""A whole training on a real local Ray of two CPUs."""

import threading

import pytest

from bcl_ray.data.shards import write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from tests.local_ray import local_ray_running

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_what_is_requested_for_workers_leaves_cpus_to_data_tasks(tmp_path):
    """Up to two workers of one CPU each on two CPUs: one worker trains, and its images come.

    Ray Data reads a first batch even without CPUs, but not in an execution of many epochs.
    """
    from bcl_ray.ray_runtime.stopping import Stopped, StopRequest
    from bcl_ray.training.driver import fit

    write_shards(open_source("digits"), str(tmp_path / "digits"), profile="natural")
    options = [f"data.path={tmp_path}/digits", f"tracking.runs={tmp_path}/runs"]
    options += ["scale.workers=[1,2]", "scale.cpus_per_worker=1", "train.epochs=3000"]
    stop, events = StopRequest(), []

    def follow(event):
        events.append(event)
        if event["kind"] == "step":
            stop.stop("the first step is done")

    with local_ray_running():
        end = threading.Timer(60, stop.stop, ["no step in 60 s"])
        end.start()
        with pytest.raises(Stopped):
            fit(with_overrides(digits_lt(), options), follow=follow, stop_request=stop)
        end.cancel()
    assert stop.reason == "the first step is done"
    assert [event["workers"] for event in events if event["kind"] == "start"] == [1]
