"""What a sweep reports to its caller and to MLflow."""

from types import SimpleNamespace

from bcl_ray.tuning.reporter import Reporter
from bcl_ray.tuning.trials import Trial

TRIALS = [
    Trial("trial-000", 0, {}, scores={5: 50.0}, status="finished"),
    Trial("trial-001", 1, {}, scores={5: 90.0}, status="stopped"),
    Trial("trial-002", 2, {}, scores={5: 60.0}),
    Trial("trial-000-seed-1", 0, {}, 1, scores={5: 70.0}, status="finished"),
    Trial("trial-000", 0, {}, scores={5: 50.0}, status="finished"),
]


def tracked(*, seeks_best):
    """What MLflow gets of these trials: metrics and their step."""
    recorded, told = [], []
    tracker = SimpleNamespace(metrics=lambda values, step: recorded.append((values, step)))
    reporter = Reporter(tracker, told.append, seeks_best=seeks_best)
    for trial in TRIALS:
        reporter(trial.to_event())
    reporter.note("slow")
    assert told == [*(trial.to_event() for trial in TRIALS), {"kind": "note", "text": "slow"}]
    return recorded


def test_a_search_reports_its_best_score_and_counts_no_repeats():
    assert tracked(seeks_best=True) == [
        ({"score/best": 50.0, "trials/ended": 1}, 1),
        ({"score/best": 50.0, "trials/ended": 2}, 2),
    ]


def test_a_study_counts_every_run_once():
    assert tracked(seeks_best=False) == [({"trials/ended": n}, n) for n in (1, 2, 3)]
