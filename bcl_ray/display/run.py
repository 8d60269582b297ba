"""The display of a run: one line per epoch, and a progress bar."""

from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bcl_ray.display.base import Display
from bcl_ray.experiment.choices import LOSSES
from bcl_ray.experiment.metric_names import (
    DATA_SHARE,
    EPOCH_SECONDS,
    EVALUATION_SECONDS,
    GROUPS,
    SPEED,
    WORKER_RATES,
    accuracy,
)
from bcl_ray.experiment.options import Experiment
from bcl_ray.runs.events import Event
from bcl_ray.storage.paths import for_display


def method_title(experiment: Experiment) -> str:
    """A short name of the loss, with options that turn parts of it off."""
    loss = experiment.loss
    kind = LOSSES[loss.kind]
    notes = ["tau 0"] if "tau" in kind.uses and loss.tau == 0 else []
    if kind.contrastive and not loss.is_contrastive:
        notes.append("contrastive_weight 0")
    return f"{kind.title} ({', '.join(notes)})" if notes else kind.title


class RunDisplay(Display):
    """Prints the events of a run, or those of a prediction."""

    first_event = "begin"

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._epochs = self._steps = 0
        # Global batch size, if the number of workers may change.
        self._elastic_batch: int | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def _shown_by(self) -> Mapping[str, Callable[[Event], None]]:
        return {
            "begin": self._begin,
            "page": self._page,
            "start": self._start,
            "step": self._step,
            "epoch": self._epoch,
            "note": self._note,
            "end": self._end,
            "predicting": self._predicting,
            "images": self._images,
        }

    def _stop(self) -> None:
        self._progress.stop()

    def _begin(self, event: Event) -> None:
        experiment, budget = event["experiment"], event["budget"]
        self._epochs, self._steps = experiment.train.epochs, budget.steps
        batch = experiment.optim.global_batch_size
        self._elastic_batch = None if isinstance(experiment.scale.workers, int) else batch
        self._print(f"run      {event['run']}  in {event['folder']}")
        self._print(f"method   {method_title(experiment)}, {experiment.model.backbone}")
        self._print(
            f"data     {for_display(experiment.data.path)}: {event['classes']} classes, "
            f"{budget.images_per_epoch:,} training images in {budget.steps_per_epoch:,} steps "
            f"of {batch}, {budget.eval_images:,} of '{experiment.data.monitored_split}' to evaluate"
        )
        self._print(f"scale    {experiment.scale.shown_workers} on Ray")
        self._print(f"MLflow   {event['tracking_uri']}")

    def _start(self, event: Event) -> None:
        position = f" at step {event['step']:,}" if event["step"] else ""
        if self._steps and event["step"] >= self._steps:
            position += ", the last: nothing is left to train"
        workers = f"{event['workers']} worker{'' if event['workers'] == 1 else 's'}"
        images = ", all images on the device" if event.get("residency") == "device" else ""
        self._print(
            f"{workers} started{position}, {self._seconds(event):.0f} s after the command, in "
            f"{event['precision']}{images}{self._batch_per_worker(event)}"
        )
        self._advance("epoch", 0, None, "")

    def _batch_per_worker(self, event: Event) -> str:
        """For an elastic run, what follows from the number of workers, and what does not."""
        if self._elastic_batch is None:
            return ""
        each = self._elastic_batch // event["workers"]
        return f": {each} images each; global batch ({self._elastic_batch}) and lr stay the same"

    def _page(self, event: Event) -> None:
        self._print(f"page     {event['page']}")

    def _step(self, event: Event) -> None:
        step, steps = event["step"], event["steps"]
        epoch = f"epoch {event['epoch'] + 1}/{self._epochs}"
        rates = event.get("rates", {})  # of rank 0, but for the images of all workers
        shown = [
            rate.shown.format(rates[name]) for name, rate in WORKER_RATES.items() if name in rates
        ]
        self._advance(epoch, step, steps, "  ".join([f"step {step}/{steps}", *shown]))

    def _epoch(self, event: Event) -> None:
        record = event["records"][-1]
        parts = [
            f"epoch {record['epoch'] + 1:>{len(str(event['epochs']))}.0f}/{event['epochs']}",
            f"loss {record['loss/total']:.3f}",
        ]
        groups = [f"{g} {record[accuracy(g)]:.1f}" for g in GROUPS if accuracy(g) in record]
        parts += ["accuracy " + "  ".join(groups)] if groups else []
        if SPEED in record:  # an epoch that was only evaluated after a restart has no such rates
            parts += [f"{record[SPEED]:,.0f} images/s", f"data {record[DATA_SHARE]:.0f} %"]
        parts.append(f"{record.get(EPOCH_SECONDS, 0) + record.get(EVALUATION_SECONDS, 0):.1f} s")
        self._print("   ".join(parts))

    def _predicting(self, event: Event) -> None:
        temperature = event["temperature"]
        calibrated = "temperature 1, because none was fitted: probabilities are not calibrated"
        if temperature:
            calibrated = f"temperature {temperature:.2f}"
        done = f", {event['done']:,} of them labelled before" if event["done"] else ""
        self._print(f"model    {event['model']}: {event['checkpoint']}, {calibrated}")
        self._print(f"images   {event['images']}: {event['total']:,}{done}")
        self._print(f"output   {event['output']}")
        self._print(f"scale    {event['device']} on Ray")

    def _images(self, event: Event) -> None:
        done, total = event["done"], event["total"]
        count = f"{done:,} images" if total is None else f"{done:,}/{total:,} images"
        if event.get("unreadable"):
            count += f", {event['unreadable']:,} unreadable"
        self._advance(event["doing"], done, total, count)

    def _advance(self, doing: str, done: int, total: int | None, count: str) -> None:
        if self._task is None:  # workers that start again keep the bar
            self._task = self._progress.add_task(doing, total=total, count=count)
        self._progress.start()
        self._progress.update(
            self._task, description=doing, completed=done, total=total, count=count
        )

    def _end(self, event: Event) -> None:
        self._stop()
        if not event["tracked"]:
            again = f"`bcl-ray sync {event['reference']}`"
            self._warn_untracked(event, f"; the journal has it all: try again with {again}")
