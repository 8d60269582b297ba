"""Options that an experiment leaves open, and that follow from its backbone."""

import json

from bcl_ray.experiment.choices import BACKBONES
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.table import code
from bcl_ray.machine.errors import UserError

OPEN = ("image_size", "eval_resize", "mean", "std", "interpolation")  # of `views`


def resolved(experiment: Experiment) -> Experiment:
    """The experiment with a value for every option; the same one if nothing is open.

    For a backbone of timm this imports timm, and checks that it has such a network.

    Raises:
        UserError: The backbone does not exist, or has no values for options that are open.
    """
    name, views = experiment.model.backbone, experiment.views
    defaults = BACKBONES[name].view_defaults
    still_open = [option for option in OPEN if getattr(views, option) is None]
    if defaults is None and still_open:
        raise UserError(
            f"views.{still_open[0]} is null, and model.backbone '{name}' has no value of its own "
            "for it, as those of timm and torchvision have: set it"
        )
    if defaults is None or not (still_open or BACKBONES[name].is_layered):
        return experiment
    own = code(defaults)(name, views.image_size)
    values = {f"views.{option}": own[option] for option in still_open}
    values["model.input_size"] = own.get("input_size")
    return with_overrides(experiment, [f"{key}={json.dumps(v)}" for key, v in values.items()])
