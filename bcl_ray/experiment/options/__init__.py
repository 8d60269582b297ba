"""The options of an experiment: one frozen object, with a section for each concern.

section      what all sections share
images       which data set, and how its images become views
method       the network, the loss and the optimiser
running      length and precision of the run, workers, and where results go
experiment   all sections together, and the checks between them

Recipes build experiments (`bcl_ray.experiment.recipes`); YAML files and overrides are read by
`bcl_ray.experiment.overrides`.
"""

from bcl_ray.experiment.options.experiment import VALUES_BEFORE_ADDED, Experiment, by_full_name
from bcl_ray.experiment.options.images import DataConfig, ViewConfig, ViewsConfig
from bcl_ray.experiment.options.method import LossConfig, ModelConfig, OptimConfig
from bcl_ray.experiment.options.running import ScaleConfig, TrackingConfig, TrainConfig, Workers
from bcl_ray.experiment.options.section import Section

__all__ = [
    "VALUES_BEFORE_ADDED",
    "DataConfig",
    "Experiment",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "ScaleConfig",
    "Section",
    "TrackingConfig",
    "TrainConfig",
    "ViewConfig",
    "ViewsConfig",
    "Workers",
    "by_full_name",
]
