"""Names that metrics and tables of results share: shot groups, and the columns of results."""

SHOT_GROUPS = ("many", "medium", "few")
"""Groups of classes by their number of training images; `bcl_ray.data.longtail.shot_groups`
defines them."""
GROUPS = ("all", *SHOT_GROUPS)
RESULTS = {**{group: f"accuracy/{group}" for group in GROUPS}, "ECE": "calibration/ece"}
"""Columns of a table of results, and the metric in each, in per cent."""
