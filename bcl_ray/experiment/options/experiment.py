"""The experiment: all sections together, and the checks between them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import Field, model_validator

from bcl_ray.experiment.choices import BACKBONES, load_plugins
from bcl_ray.experiment.options.images import DataConfig, ViewsConfig
from bcl_ray.experiment.options.method import LossConfig, ModelConfig, OptimConfig
from bcl_ray.experiment.options.running import ScaleConfig, TrackingConfig, TrainConfig
from bcl_ray.experiment.options.section import NAME, Section
from bcl_ray.machine.errors import UserError

VALUES_BEFORE_ADDED = {
    ("data", "plan"): 1,
    ("data", "validation_split"): None,
    ("train", "geometry_every"): 1,
    ("views", "interpolation"): "bilinear",
    ("model", "drop_path"): 0.0,
    ("model", "input_size"): None,
    ("optim", "kind"): "sgd",
    ("optim", "backbone_lr"): 1.0,
    ("optim", "layer_decay"): 1.0,
    ("optim", "frozen_epochs"): 0,
    ("optim", "clip_norm"): None,
}
"""For each option that was added later, the value with which older versions behaved; experiments
stored before lack the option."""


class Experiment(Section):
    """Everything that determines a run."""

    name: str = Field(pattern=f"^{NAME.pattern}$", description="The recipe's name.")
    data: DataConfig
    views: ViewsConfig
    model: ModelConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    scale: ScaleConfig = ScaleConfig()
    tracking: TrackingConfig = TrackingConfig()
    plugins: tuple[str, ...] = Field(
        (),
        description="Modules that add losses, backbones or sources. They are imported wherever the "
        "experiment is read: on the driver, by workers and in trials.",
    )

    @model_validator(mode="before")
    @classmethod
    def _load_plugins(cls, content: Any) -> Any:
        """Import plugins before the sections are validated: these use the names they add."""
        if isinstance(content, dict):
            load_plugins(content.get("plugins") or ())
        return content

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Import plugins in another process too, such as a data task, which validates nothing."""
        super().__setstate__(state)
        load_plugins(self.plugins)

    @model_validator(mode="after")
    def _check_workers(self) -> "Experiment":
        batch, scale = self.optim.global_batch_size, self.scale
        for workers in (scale.min_workers, scale.max_workers):
            if batch % workers:
                raise UserError(
                    f"optim.global_batch_size ({batch}) must be divisible by scale.workers "
                    f"({workers}): workers with unequal batches would hang in all-reduce"
                )
        if self.data.plan == 1 and scale.max_workers > self.data.max_workers:
            raise UserError(
                f"scale.workers ({scale.max_workers}) must be at most data.max_workers "
                f"({self.data.max_workers}) if data.plan is 1: raise data.max_workers to plan for "
                "more"
            )
        return self

    @model_validator(mode="after")
    def _check_layers(self) -> "Experiment":
        name, decay = self.model.backbone, self.optim.layer_decay
        if decay < 1 and not BACKBONES[name].is_layered:
            raise UserError(
                f"optim.layer_decay ({decay:g}) needs a model.backbone of timm, which numbers its "
                f"layers, not '{name}'"
            )
        return self

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """All allowed numbers of workers, rising: divisors of the global batch size."""
        counts = range(self.scale.min_workers, self.scale.max_workers + 1)
        return tuple(n for n in counts if self.optim.global_batch_size % n == 0)

    @property
    def is_resident(self) -> bool:
        """Whether images are kept on the workers' devices, and nothing is streamed."""
        return self.data.residency == "device"

    @property
    def min_data_cpus(self) -> float:
        """CPUs that data tasks need at least, over all workers; 0 if nothing is streamed."""
        if self.is_resident:
            return 0.0
        return max(self.scale.data_cpus or 0.0, self.scale.cpus_per_data_task)

    @property
    def num_contrastive(self) -> int:
        """V, the contrastive views that are made per image: 0 without a contrastive loss."""
        return self.views.num_contrastive if self.loss.is_contrastive else 0

    def to_yaml(self) -> str:
        """The complete experiment as YAML, from which `from_stored` makes an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def result_options(self) -> dict[str, Any]:
        """The options that affect the result, by their full names (`section.field`).

        Not among them: `scale`, `tracking`, `plugins`, and where the data are.
        """
        return by_full_name(self._result_content())

    def digest(self) -> str:
        """Twelve hex digits that identify the options of `result_options`."""
        content = self._result_content()
        for (section, option), value in VALUES_BEFORE_ADDED.items():
            if content[section][option] == value:
                # Leave it out: older versions computed the digest without it.
                del content[section][option]
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _result_content(self) -> dict[str, Any]:
        location = {"path", "residency"}
        return self.model_dump(
            mode="json",
            exclude={"scale": True, "tracking": True, "plugins": True, "data": location},
        )


def by_full_name(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their full names (`section.field`), from the sections of `model_dump`."""
    options: dict[str, Any] = {}
    for key, value in sections.items():
        if isinstance(value, dict):
            options |= by_full_name(value, f"{prefix}{key}.")
        else:
            options[f"{prefix}{key}"] = value
    return options
