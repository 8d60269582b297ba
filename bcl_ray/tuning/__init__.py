"""Search: many trainings that differ in a few options, the best of which is worth knowing.

A search is a folder `<tracking.runs>/<name>/` with its settings, its data, and a folder per
trial, each of which is an ordinary run. Ray Tune schedules the trials; what it was told is
written down here, trial by trial, so that a search goes on from its folder alone.
"""
