"""What a person sees of a search: a live table of the best trials, and a line as each one ends."""

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bcl_ray.display.tables import build_table
from bcl_ray.display.terminal import print_line
from bcl_ray.runs import events
from bcl_ray.tuning.space import overrides
from bcl_ray.tuning.trials import spread

Event = dict[str, Any]

KINDS = ("search", "trial", "confirm", "winner")  # of events that are a search's alone
SHOWN = 10  # trials of the live table
MINUTE, HOUR = 60, 3600


def follower(console: Console) -> "SearchDisplay | events.EventWriter":
    """What shows a search's events: to a person, or as lines where the environment asks."""
    return events.EventWriter() if events.requested() else SearchDisplay(console)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h"


def seconds_left(trials: list[Event], began: float, now: float, wanted: int) -> float | None:
    """Time until all trials have ended, if the rest takes as long as those before.

    Args:
        trials: latest event of each; those with `old` ended in an earlier process.
        began: time at which this process began.
        now: the time.
        wanted: trials in all.

    Returns:
        None before one has ended.
    """
    ended = [trial for trial in trials if trial["status"] != "running"]
    fresh = [trial for trial in ended if not trial.get("old")]
    if not fresh:
        return None
    return (now - began) / len(fresh) * max(wanted - len(ended), 0)


class SearchDisplay:
    """Shows a search's events as they come, or as they came: those of a log have own times."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()
        self._search: Event = {}
        self._trials: dict[str, Event] = {}
        self._repeats = 0
        self._at: float | None = None
        self._live = Live(
            console=console, transient=True, refresh_per_second=1, get_renderable=self._table
        )

    def __enter__(self) -> "SearchDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event; those of a later version are passed over."""
        self._at = event.get("at")
        kinds = {
            "search": self._begin,
            "trial": self._trial,
            "confirm": self._confirm,
            "note": self._note,
            "winner": self._winner,
        }
        if show := kinds.get(event["kind"]):
            show(event)

    def _print(self, line: str, style: str | None = None) -> None:
        print_line(self.console, line, style)

    def _begin(self, event: Event) -> None:
        self._search = event
        self._print(f"search   {event['search']}  in {event['folder']}")
        self._print(f"around   {event['recipe']}, {event['data']}")
        self._print(
            f"trials   {event['trials']} of {event['epochs']} epochs, {event['slots']} at once, "
            f"{event['workers']} each"
        )
        self._print(
            f"choice   {event['searcher']}, {event['scheduler']}, by {event['metric']} on "
            "validation data"
        )
        for number, parameter in enumerate(event["space"]):
            self._print(f"{'' if number else 'space':<9}{parameter}")
        self._print(f"MLflow   {event['tracking_uri']}")
        if self.console.is_terminal:
            self._live.start()

    def _trial(self, event: Event) -> None:
        before = self._trials.get(event["trial"], {}).get("status", "running")
        self._trials[event["trial"]] = event
        if event["status"] != before and not event.get("old"):
            self._print(self._line(event), style="yellow" if event["status"] == "failed" else None)

    def _line(self, event: Event) -> str:
        ends = [t for t in self._trials.values() if t["status"] != "running"]
        score = "-" if event["score"] is None else f"{event['score']:.2f}"
        text = (
            f"{event['trial']}  {event['status']:<8} {event['epochs']:>3}/{self._epochs} epochs  "
            f"{score:>6}  {' '.join(_short(event['point']))}"
        )
        if event["reason"]:
            text += f"  ({event['reason']})"
        return f"{len(ends):>3}/{self._wanted}  {text}"

    @property
    def _epochs(self) -> int:
        return int(self._search.get("epochs", 0))

    @property
    def _wanted(self) -> int:
        known = sum(trial.get("seed") is not None for trial in self._trials.values())
        own = int(self._search.get("trials", 0))
        return max(own + max(self._repeats, known), len(self._trials))

    def _confirm(self, event: Event) -> None:
        self._repeats = event["runs"]
        self._print(f"confirm  {event['runs']} runs with other seeds")

    def _note(self, event: Event) -> None:
        self._print(event["text"], style="yellow")

    def _table(self) -> Group:
        """The best trials and those that run, and how long the rest may take."""
        trials = list(self._trials.values())
        now = time.monotonic() - self._began if self._at is None else self._at
        left = seconds_left(trials, 0.0, now, self._wanted)
        ended = sum(trial["status"] != "running" for trial in trials)
        head = f"{ended} of {self._wanted} trials, {duration(now)}"
        head += f", about {duration(left)} left" if left is not None else ""
        return Group(Text(head), trial_table(trials, self._search.get("metric", ""), SHOWN))

    def _winner(self, event: Event) -> None:
        self._live.stop()
        own = [trial for trial in self._trials.values() if "-seed-" not in trial["trial"]]
        self.console.print(trial_table(own, event["metric"], SHOWN))
        self._print(f"winner   {event['trial']}: {' '.join(overrides(event['point']))}")
        published = event["published"]
        against = "" if published is None else f", {published:.2f} with the published values"
        over = " over other seeds" if event["confirmed"] else ""
        score = f"{event['metric']} {event['score']:.2f}"
        self._print(f"         {score} on validation data{over}{against}")
        for name, scores in event["confirmed"].items():
            self._print(f"seeds    {name}: {spread(scores)} with {len(scores)} other seeds")
        if not event["confirmed"]:
            self._print("         one run each, so half a point means nothing: --confirm 3,3")
        groups = [name for name in event["test"] if name.startswith("accuracy/")]
        shown = "  ".join(f"{g.partition('/')[2]} {_test(event['test'][g])}" for g in groups)
        self._print(f"test     accuracy {shown}  (once, at the end)")
        self._print(f"next     bcl-ray train {event['recipe']}")
        if not event["tracked"]:
            self._print(f"MLflow did not take everything ({event['problem']})", style="yellow")


def trial_table(trials: list[Event], metric: str, most: int) -> Table:
    """The best trials, with those that run below them.

    Args:
        trials: latest event of each.
        metric: what the score is.
        most: rows.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial["point"]))
    rank = {"finished": 0, "running": 1, "stopped": 2, "failed": 3}

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
        for trial in sorted(trials, key=order)[:most]
    ]
    options = (name.rpartition(".")[2] for name in names)
    columns = ("trial", "status", "epochs", metric, *options)
    return build_table(columns, rows, text=("trial", "status"))


def _test(found: Sequence[float]) -> str:
    mean, deviation = found
    return f"{mean:.1f} ± {deviation:.1f}" if deviation else f"{mean:.1f}"


def _short(point: dict[str, Any]) -> list[str]:
    return [text.partition(".")[2] for text in overrides(point)]
