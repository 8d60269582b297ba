"""Names and units of the metrics of an evaluation, for the code that computes or shows them."""

SHOT_GROUPS = ("many", "medium", "few")
"""Groups of classes by their number of training images; `bcl_ray.data.longtail.shot_groups`
defines them."""
GROUPS = ("all", *SHOT_GROUPS)


def accuracy(group: str) -> str:
    """Name of the accuracy of a group of classes."""
    return f"accuracy/{group}"


ACCURACY = accuracy("all")
"""The metric by which runs are compared unless another one is asked for."""
ECE, ECE_CALIBRATED = "calibration/ece", "calibration/ece_calibrated"
TEMPERATURE = "calibration/temperature"
NLL = "loss/nll"

TITLES = {
    **{accuracy(group): f"accuracy {group} (%)" for group in GROUPS},
    ECE: "calibration error (%)",
    ECE_CALIBRATED: "calibration error after temperature scaling (%)",
    TEMPERATURE: "temperature",
    NLL: "negative log-likelihood (nats)",
}
"""Title and unit of each metric, for tables and figures."""

RESULTS = {**{group: accuracy(group) for group in GROUPS}, "ECE": ECE}
"""Columns of a table of results, and the metric in each, in per cent."""
