"""Balanced Contrastive Learning for long-tailed images, on a Ray cluster.

    import bcl_ray

    bcl_ray.shard("digits", "data/digits_lt", profile="exponential", imbalance_factor=50)
    bcl_ray.train(bcl_ray.recipe("digits_lt", "tracking.run=first"))
    model = bcl_ray.load_model("first")

What is named here is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcl_ray.api.data import shard as shard
    from bcl_ray.api.experiments import plan as plan
    from bcl_ray.api.experiments import recipe as recipe
    from bcl_ray.api.models import load_model as load_model
    from bcl_ray.api.models import predict as predict
    from bcl_ray.api.runs import evaluate as evaluate
    from bcl_ray.api.runs import train as train
    from bcl_ray.api.searches import search as search
    from bcl_ray.api.studies import study as study

__version__ = "0.1.0"
__all__ = [
    "evaluate",
    "load_model",
    "plan",
    "predict",
    "recipe",
    "search",
    "shard",
    "study",
    "train",
]

_MODULES = {
    "evaluate": "runs",
    "load_model": "models",
    "plan": "experiments",
    "predict": "models",
    "recipe": "experiments",
    "search": "searches",
    "shard": "data",
    "study": "studies",
    "train": "runs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bcl_ray' has no attribute '{name}'")
    return getattr(importlib.import_module(f"bcl_ray.api.{_MODULES[name]}"), name)
