"""The display of a search: a live table of the best trials, and a line when a trial ends."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bcl_ray.display.base import Display
from bcl_ray.display.tables import build_table
from bcl_ray.display.terminal import duration
from bcl_ray.experiment.metric_names import GROUPS, accuracy
from bcl_ray.report.seeds import mean_and_deviation, spread
from bcl_ray.runs.events import Event
from bcl_ray.tuning.space import overrides
from bcl_ray.tuning.trials import OPEN

MAX_SHOWN = 10  # trials in a table


def seconds_left(trials: list[Event], elapsed: float, total: int) -> float | None:
    """Estimate the seconds until all trials have ended, from the trials of this process.

    Args:
        trials: Latest event of each trial; those with `old` ended in an earlier process.
        elapsed: Seconds since this process began.
        total: Number of trials of the search.

    Returns:
        None before the first trial of this process has ended.
    """
    ended = [trial for trial in trials if trial["status"] not in OPEN]
    ended_here = [trial for trial in ended if not trial.get("old")]
    if not ended_here:
        return None
    return elapsed / len(ended_here) * max(total - len(ended), 0)


class SearchDisplay(Display):
    """Shows the events of a search."""

    first_event, last_event = "search", "winner"

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._start_event: Event = {}
        self._trials: dict[str, Event] = {}
        self._repeats = 0  # runs with other seeds
        self._latest_event: Event = {}
        self._live = Live(
            console=console, transient=True, refresh_per_second=1, get_renderable=self._table
        )

    def __call__(self, event: Event) -> None:
        """Show one event; ignore kinds of later versions."""
        self._latest_event = event
        super().__call__(event)

    def _shown_by(self) -> Mapping[str, Callable[[Event], None]]:
        return {
            self.first_event: self._begin,
            "trial": self._trial,
            "confirm": self._confirm,
            "note": self._note,
            self.last_event: self._end,
        }

    def _stop(self) -> None:
        self._live.stop()

    def _begin(self, event: Event) -> None:
        self._start_event = event
        self._introduce(event)
        self._print(f"MLflow   {event['tracking_uri']}")
        if self.console.is_terminal:
            self._live.start()

    def _introduce(self, event: Event) -> None:
        self._print(f"search   {event['search']}  in {event['folder']}")
        self._print(f"recipe   {event['recipe']}, {event['data']}")
        self._print(
            f"trials   {event['trials']} of {event['epochs']} epochs, {event['slots']} at once, "
            f"{event['workers']} each"
        )
        self._print(
            f"options  searcher {event['searcher']}, scheduler {event['scheduler']}, metric "
            f"{event['metric']} on validation data"
        )
        for number, parameter in enumerate(event["space"]):
            self._print(f"{'' if number else 'space':<9}{parameter}")

    def _trial(self, event: Event) -> None:
        before = self._trials.get(event["trial"], {}).get("status")
        self._trials[event["trial"]] = event
        if event["status"] not in (before, *OPEN) and not event.get("old"):
            self._print(self._line(event), style="yellow" if event["status"] == "failed" else None)

    def _line(self, event: Event) -> str:
        ended = sum(trial["status"] not in OPEN for trial in self._trials.values())
        score = "-" if event["score"] is None else f"{event['score']:.2f}"
        text = (
            f"{event['trial']}  {event['status']:<8} {event['epochs']:>3}/{self._epochs} epochs  "
            f"{score:>6}  {' '.join(_without_section(event['point']))}"
        )
        if event["reason"]:
            text += f"  ({event['reason']})"
        return f"{ended:>3}/{self._total}  {text}"

    @property
    def _epochs(self) -> int:
        return int(self._start_event.get("epochs", 0))

    @property
    def _total(self) -> int:
        repeats = sum(trial.get("seed") is not None for trial in self._trials.values())
        trials = int(self._start_event.get("trials", 0))
        return max(trials + max(self._repeats, repeats), len(self._trials))

    def _confirm(self, event: Event) -> None:
        self._repeats = event["runs"]
        self._print(f"confirm  {event['runs']} runs with other seeds")

    def _table(self) -> Group:
        """The best trials, those that are running, and the estimated time for the rest."""
        trials = list(self._trials.values())
        elapsed = self._seconds(self._latest_event)
        left = seconds_left(trials, elapsed, self._total)
        ended = sum(trial["status"] not in OPEN for trial in trials)
        heading = f"{ended} of {self._total} trials, {duration(elapsed)}"
        heading += f", about {duration(left)} left" if left is not None else ""
        return Group(Text(heading), trial_table(trials, self._start_event.get("metric", "")))

    def _end(self, event: Event) -> None:
        self._stop()
        self._conclude(event)
        if not event["tracked"]:
            self._warn_untracked(event)

    def _conclude(self, event: Event) -> None:
        own = [trial for trial in self._trials.values() if trial.get("seed") is None]
        self.console.print(trial_table(own, event["metric"]))
        self._print(f"winner   {event['trial']}: {' '.join(overrides(event['point']))}")
        score = f"{event['metric']} {event['score']:.2f} on validation data"
        if event["confirmed"]:
            score += " over other seeds"
        if event["published"] is not None:
            score += f", {event['published']:.2f} with the published values"
        self._print(f"         {score}")
        for name, scores in event["confirmed"].items():
            score = spread(*mean_and_deviation(scores), 2)
            self._print(f"seeds    {name}: {score} with {len(scores)} other seeds")
        if not event["confirmed"]:
            self._print("         one run each, so half a point means nothing: --confirm 3,3")
        test = []
        for group in GROUPS:
            if accuracy(group) in event["test"]:
                mean, deviation = event["test"][accuracy(group)]
                test.append(f"{group} {spread(mean, deviation or None, 1)}")  # a single run has 0
        self._print(f"test     accuracy {'  '.join(test)}  (once, at the end)")
        self._print(f"next     bcl-ray train {event['recipe']}")


def trial_table(trials: list[Event], metric: str) -> Table:
    """The first trials: finished ones from best to worst, then open, stopped and failed ones.

    Args:
        trials: Latest event of each trial.
        metric: Name of the score.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial["point"]))
    rank = {"finished": 0, "running": 1, "held up": 2, "stopped": 3, "failed": 4}

    def order(trial: Event) -> tuple[int, float]:
        return rank[trial["status"]], -(trial["score"] if trial["score"] is not None else -1e9)

    rows = [
        (
            trial["trial"],
            trial["status"],
            str(trial["epochs"]),
            "-" if trial["score"] is None else f"{trial['score']:.2f}",
            *(str(trial["point"].get(name, "")) for name in names),
        )
        for trial in sorted(trials, key=order)[:MAX_SHOWN]
    ]
    options = (name.rpartition(".")[2] for name in names)
    columns = ("trial", "status", "epochs", metric, *options)
    return build_table(columns, rows, text=("trial", "status"))


def _without_section(point: dict[str, Any]) -> list[str]:
    """Options by their fields alone, and the axes of a study, which have no section."""
    return overrides({name.partition(".")[2] or name: value for name, value in point.items()})
