"""The display of a study: that of a search, with cells for points and a table at the end."""

from bcl_ray.display.search import SearchDisplay
from bcl_ray.display.tables import build_table
from bcl_ray.experiment.metric_names import RESULTS
from bcl_ray.runs.events import Event


class StudyDisplay(SearchDisplay):
    """Shows the events of a study."""

    first_event, last_event = "study", "result"

    def _introduce(self, event: Event) -> None:
        self._print(f"study    {event['study']}  in {event['folder']}")
        self._print(f"file     {event['file']}, {', '.join(event['data'])}")
        seeds = ", ".join(map(str, event["seeds"]))
        self._print(
            f"runs     {event['trials']}: {event['cells']} cells, each with seeds {seeds}; "
            f"{event['slots']} at once, up to {event['epochs']} epochs"
        )

    @property
    def _total(self) -> int:
        return int(self._start_event.get("trials", 0))

    def _conclude(self, event: Event) -> None:
        self._print_table(event["summary"], "mean and 95 % interval over seeds, of the last epoch")
        self._print_table(event["differences"], "differences, paired by seed")
        if event["one_seed"]:
            self._print("one seed has no interval: half a point means nothing", style="yellow")
        for name, reason in event["failed"].items():
            self._print(f"failed   {name}: {reason}", style="yellow")
        self._print(f"files    {event['folder']}: study.md, summary.csv, runs.csv, report.html")

    def _print_table(self, rows: list[dict[str, str]], title: str) -> None:
        if not rows:
            return
        labels = list(rows[0])[: list(rows[0]).index("seeds")]
        columns = [c for c in rows[0] if c in (*labels, "seeds", *RESULTS, "minutes")]
        cells = [[row[column] for column in columns] for row in rows]
        self.console.print(build_table(columns, cells, text=labels, title=title))
