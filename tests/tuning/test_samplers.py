"""The choice of the next point, and what a resumed search remembers."""

import pytest

from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.tuning.samplers import TpeSampler, make_sampler
from bcl_ray.tuning.space_parser import parse_space

TAU = "loss.tau: {uniform: [0, 2]}\nloss.anchor_mean: {choice: [instance, class]}"
SPACE = parse_space(TAU, digits_lt())


def value(point) -> float:
    """A score that is best at tau 0.5 with anchor_mean class."""
    return -abs(point["loss.tau"] - 0.5) + (point["loss.anchor_mean"] == "class")


def run_trial(sampler, number, status="finished"):
    point = sampler.ask(number)
    sampler.tell(number, point, {5: value(point) - 1, 10: value(point)}, status)
    return point


def test_chance_needs_no_memory():
    whole, resumed = (make_sampler("random", SPACE, seed=3) for _ in range(2))
    points = [whole.ask(number) for number in range(1, 10)]
    assert [resumed.ask(number) for number in range(5, 10)] == points[4:]


def test_a_grid_ends():
    grid = make_sampler("grid", SPACE, seed=0)
    points = [grid.ask(number) for number in range(1, 7)]
    assert points[:5] == list(SPACE.grid())
    assert points[5] is None


def test_a_grid_of_the_published_point_alone_is_refused():
    space = parse_space("loss.tau: {choice: [1]}", digits_lt())
    with pytest.raises(ValueError, match="the grid has no point"):
        make_sampler("grid", space, seed=0)


def test_tpe_finds_what_is_good():
    sampler = TpeSampler(SPACE, seed=0, earlier=0)
    points = [
        run_trial(sampler, number, "stopped" if number % 3 else "finished")
        for number in range(1, 41)
    ]
    late = points[-10:]
    assert sum(point["loss.anchor_mean"] == "class" for point in late) >= 8
    assert sum(abs(point["loss.tau"] - 0.5) < 0.4 for point in late) >= 5


def test_tpe_remembers_what_an_earlier_process_found():
    earlier = [SPACE.sample(1, number) for number in range(30)]
    sampler = TpeSampler(SPACE, seed=0, earlier=30)
    for number, point in enumerate(earlier):
        sampler.tell(number, point, {10: value(point)}, "finished")
    points = [sampler.ask(number) for number in range(30, 38)]
    assert sum(point["loss.anchor_mean"] == "class" for point in points) >= 6


def test_tpe_goes_on_after_failures_and_points_outside_of_the_space():
    sampler = TpeSampler(SPACE, seed=0, earlier=0)
    sampler.tell(0, {"loss.tau": 9.0, "loss.anchor_mean": "none"}, {10: 1.0}, "finished")
    sampler.tell(1, SPACE.sample(0, 1), {}, "failed")
    point = sampler.ask(2)
    sampler.tell(2, point, {}, "failed")
    assert SPACE.allows(sampler.ask(3))
