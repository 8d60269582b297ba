"""An evaluation with all that is looked at on the way: geometry of fixed samples, findings.

The samples are the same at every epoch and for any number of workers. Of the evaluation split
it is images that pass by anyway; of the training split, images that are read and decoded once,
when they are first needed, and then kept: another stream would cost more than the network.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bcl_ray.data.layout import evaluation_reads, split_layout
from bcl_ray.data.shards import Manifest, read_row_group
from bcl_ray.data.views.transfer import Sent
from bcl_ray.experiment.options import Experiment
from bcl_ray.method.collectives import rank, world_size
from bcl_ray.method.evaluation import Batch, Evaluation, evaluate, geometry_metrics, represent
from bcl_ray.method.geometry import Sample, class_means, is_sampled, sample_shares
from bcl_ray.method.metrics import calibrated_bins
from bcl_ray.method.model import TwoBranch
from bcl_ray.runs.findings import Findings
from bcl_ray.storage import files
from bcl_ray.training.tasks import source_of

EVALUATED_IMAGES = 4096  # of the evaluation split's sample, at most
TRAINED_IMAGES = 2048  # of the training split's, which are classified for the sample alone
KEPT_BYTES = 256 * 2**20  # of the training sample's pixels, over all workers
READ_BYTES = 2 * 2**30  # of the training split that is read for its sample
THREADS = 4  # that read and decode it


class Probe:
    """Evaluates a network on a split, as often as it is asked to.

    Args:
        experiment: what is evaluated, and its options.
        manifest: of the shards in experiment.data.path.
        class_counts: training images per class, (K,), which make the shot groups.
        device: where the network is.
        over: wraps what takes long, such as `Watch.over`; gives the same items.
    """

    def __init__(
        self,
        experiment: Experiment,
        manifest: Manifest,
        class_counts: NDArray[np.int64],
        device: torch.device,
        over: Callable[[Iterable[Any]], Iterator[Any]] = iter,
    ) -> None:
        self.experiment, self.manifest, self.class_counts = experiment, manifest, class_counts
        self.device, self.over = device, over
        self.split = manifest.splits[experiment.data.eval_split]

    def evaluate(
        self,
        model: TwoBranch,
        batches: Iterable[Batch | Sent],
        *,
        labels: NDArray[np.int64] | None = None,
        trained: bool = True,
    ) -> Evaluation:
        """Metrics with geometry/*, and the rest of `inference.evaluate`.

        Args:
            model: the network.
            batches: this worker's part of the evaluation split.
            labels: the model's label of each class of the split, where they differ.
            trained: whether to look at a sample of the training split, too.

        Raises:
            RuntimeError: an image was not counted once.
        """
        split_counts = np.zeros(len(self.class_counts))
        split_counts[slice(None) if labels is None else labels] = self.split.class_counts
        found = evaluate(
            model,
            self.over(batches),
            experiment=self.experiment,
            class_counts=self.class_counts,
            rows=self.split.rows,
            device=self.device,
            shares=sample_shares(split_counts, self.class_counts, EVALUATED_IMAGES),
        )
        metrics = found.metrics | geometry_metrics(model, found.sample, self.class_counts)
        if trained:
            sample = self._represented(model)
            metrics |= geometry_metrics(model, sample, self.class_counts, "train")
        return found._replace(metrics=metrics)

    def findings(self, found: Evaluation, **about: Any) -> Findings:
        """What is kept of an evaluation; `about` says more of it."""
        calibrated = calibrated_bins(found.counts)
        classes, embeddings = class_means(found.sample.embeddings, found.sample.labels)
        _, features = class_means(found.sample.features, found.sample.labels)
        columns = {name: tensor.numpy() for name, tensor in found.predictions._asdict().items()}
        return Findings(
            **columns,
            classes=classes.numpy(),
            embeddings=embeddings.float().numpy(),
            features=features.float().numpy(),
            about={
                "data": self.experiment.data.path,
                "split": self.experiment.data.eval_split,
                "fingerprint": self.manifest.fingerprint,
                "metrics": found.metrics,
                "bins": found.counts.bins.tolist(),
                "calibrated_bins": None if calibrated is None else calibrated.tolist(),
                **about,
            },
        )

    def _represented(self, model: TwoBranch) -> Sample:
        batches = self.over(self._training_sample)
        return represent(model, batches, experiment=self.experiment, device=self.device)

    @cached_property
    def _training_sample(self) -> list[Batch]:
        """This worker's part of the training split's sample, as evaluation sees it."""
        split = self.manifest.splits[self.experiment.data.train_split]
        stride = 1 + sum(shard.bytes for shard in split.shards) // READ_BYTES
        images = min(TRAINED_IMAGES, KEPT_BYTES // (3 * self.experiment.views.image_size**2))
        counts = np.array(split.class_counts) / stride
        shares = sample_shares(counts, self.class_counts, images)
        source = source_of(self.experiment, self.manifest, training=True)
        source = replace(source, training=False)
        rows = split_layout(self.experiment, self.manifest, "train_split")

        def load(read: Any) -> Batch | None:
            uri = files.join(source.path, source.files[read.shard])
            table = read_row_group(uri, read.row_group, ["id", "label"])
            ids, labels = table["id"].to_numpy(), table["label"].to_numpy()
            chosen = np.flatnonzero(is_sampled(ids, labels, shares))
            return source.load(0, [read._replace(rows=chosen)]) if len(chosen) else None

        reads = [
            read
            for read in evaluation_reads(rows, rank(), world_size())
            if (rows.first_groups[read.shard] + read.row_group) % stride == 0
        ]
        with ThreadPoolExecutor(THREADS) as threads:
            parts = [part for part in self.over(threads.map(load, reads)) if part is not None]
        size = self.experiment.optim.global_batch_size // world_size()
        return list(_batches(parts, size))


def _batches(parts: list[Batch], size: int) -> Iterator[Batch]:
    """The same rows in batches of one size, the last of which may be smaller."""
    if parts:
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for start in range(0, len(whole["ids"]), size):
            yield {name: column[start : start + size] for name, column in whole.items()}
