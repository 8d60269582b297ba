"""Evaluation of a network: accuracy, geometry of fixed samples, and findings to keep.

Geometry is measured on a sample of each split, which is the same at every epoch and for any number
of workers. The evaluation split's sample is a part of the evaluated images. The training split's
is read and decoded once and kept in memory: a second stream would cost more than the network.

Axes: K classes.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bcl_ray.data.layout import evaluation_reads, split_layout
from bcl_ray.data.shards import Manifest, read_row_group
from bcl_ray.data.views.transfer import Batch, DeviceBatch
from bcl_ray.experiment.options import Experiment
from bcl_ray.method.collectives import rank, world_size
from bcl_ray.method.evaluation import Evaluation, collect_sample, evaluate, geometry_metrics
from bcl_ray.method.geometry import class_means
from bcl_ray.method.metrics import calibrated_bins
from bcl_ray.method.model import TwoBranch
from bcl_ray.method.sample import is_sampled, sample_shares
from bcl_ray.runs.findings import Findings
from bcl_ray.storage import files
from bcl_ray.training.resident_images import Watch
from bcl_ray.training.tasks import Task, joined, rebatched, source_of

EVALUATED_IMAGES = 4096  # at most, in the evaluation split's sample
TRAINED_IMAGES = 2048  # at most, in the training split's, which is extra work for the network
KEPT_BYTES = 256 * 2**20  # at most, of the training sample's pixels, on all workers together
READ_BYTES = 2 * 2**30  # of shards, about as many as are read for the training sample
THREADS = 4  # that read and decode the training sample


class Evaluator:
    """Evaluates a network on the evaluation split, any number of times.

    Args:
        experiment: The run's options.
        manifest: Manifest of the shards in data.path.
        class_counts: Training images per class, (K,), which define the shot groups.
        device: The network's device.
        watched: Wraps an iterable that takes long, as `Watchdog.watched` does.
    """

    def __init__(
        self,
        experiment: Experiment,
        manifest: Manifest,
        class_counts: NDArray[np.int64],
        device: torch.device,
        watched: Watch = iter,
    ) -> None:
        self.experiment, self.manifest, self.class_counts = experiment, manifest, class_counts
        self.device, self.watched = device, watched
        self.split = manifest.splits[experiment.data.monitored_split]

    def evaluate(
        self,
        model: TwoBranch,
        batches: Iterable[Batch | DeviceBatch],
        *,
        labels: NDArray[np.int64] | None = None,
        geometry: bool = True,
        trained: bool = True,
    ) -> Evaluation:
        """The result of `evaluation.evaluate`, on rank 0 with metrics of geometry.

        Args:
            model: The network.
            batches: This worker's part of the evaluation split.
            labels: The model's label of each class of the split; None if they are the same.
            geometry: Whether to measure geometry.
            trained: Whether to measure that of the training split, too.

        Raises:
            RuntimeError: An image was not counted exactly once.
        """
        split_counts = np.zeros(len(self.class_counts))
        split_counts[slice(None) if labels is None else labels] = self.split.class_counts
        evaluation = evaluate(
            model,
            self.watched(batches),
            experiment=self.experiment,
            class_counts=self.class_counts,
            rows=self.split.rows,
            device=self.device,
            shares=sample_shares(split_counts, self.class_counts, EVALUATED_IMAGES),
        )
        if not geometry:
            return evaluation
        samples = {"": evaluation.sample}
        if trained:
            batches = self.watched(self._training_sample)
            samples["train"] = collect_sample(
                model, batches, experiment=self.experiment, device=self.device
            )
        metrics = dict(evaluation.metrics)
        if rank() == 0:  # one is enough, and workers of a node would share its CPUs
            for where, sample in samples.items():
                metrics |= geometry_metrics(model, sample, self.class_counts, where)
        return evaluation._replace(metrics=metrics)

    def findings(self, evaluation: Evaluation, **about: Any) -> Findings:
        """What is kept of an evaluation; `about` adds entries to its description."""
        calibrated = calibrated_bins(evaluation.counts)
        classes, embeddings = class_means(evaluation.sample.embeddings, evaluation.sample.labels)
        _, features = class_means(evaluation.sample.features, evaluation.sample.labels)
        columns = {
            name: tensor.numpy() for name, tensor in evaluation.predictions._asdict().items()
        }
        return Findings(
            **columns,
            classes=classes.numpy(),
            embeddings=embeddings.float().numpy(),
            features=features.float().numpy(),
            about={
                "data": self.experiment.data.path,
                "split": self.experiment.data.monitored_split,
                "fingerprint": self.manifest.fingerprint,
                "metrics": evaluation.metrics,
                "bins": evaluation.counts.bins.tolist(),
                "calibrated_bins": None if calibrated is None else calibrated.tolist(),
                **about,
            },
        )

    @cached_property
    def _training_sample(self) -> list[Batch]:
        """This worker's part of the training split's sample, with evaluation's views.

        Of a split of more than READ_BYTES, only every `stride`-th row group is read.
        """
        split = self.manifest.splits[self.experiment.data.train_split]
        stride = 1 + sum(shard.bytes for shard in split.shards) // READ_BYTES
        images = min(TRAINED_IMAGES, KEPT_BYTES // (3 * self.experiment.views.image_size**2))
        counts = np.array(split.class_counts) / stride
        shares = sample_shares(counts, self.class_counts, images)
        source = source_of(self.experiment, self.manifest, training=True)
        source = replace(source, training=False)  # evaluation's views of training images
        layout = split_layout(self.experiment, self.manifest, "training")

        def load(read: Any) -> Batch | None:
            uri = files.join(source.path, source.files[read.shard])
            table = read_row_group(uri, read.row_group, ["id", "label"])
            ids, labels = table["id"].to_numpy(), table["label"].to_numpy()
            chosen = np.flatnonzero(is_sampled(ids, labels, shares))
            if not len(chosen):
                return None
            (block,) = source.load(Task(0, ((read._replace(rows=chosen),),)))
            return block

        reads = [
            read
            for read in evaluation_reads(layout, rank(), world_size())
            if (layout.first_groups[read.shard] + read.row_group) % stride == 0
        ]
        with ThreadPoolExecutor(THREADS) as threads:
            parts = [part for part in self.watched(threads.map(load, reads)) if part is not None]
        size = self.experiment.optim.global_batch_size // world_size()
        return [joined(batch) for batch in rebatched(parts, size)]
