"""Names that metrics and tables of results share: shot groups, and the columns of results."""

SHOT_GROUPS = ("many", "medium", "few")
"""Classes by training images, from head to tail: `bcl_ray.data.longtail.shot_groups`."""
GROUPS = ("all", *SHOT_GROUPS)
RESULTS = {**{group: f"accuracy/{group}" for group in GROUPS}, "ECE": "calibration/ece"}
"""Columns of a table of results, and the metric in each; all in per cent."""
