"""A search: many training runs that differ in a few options, compared on validation data.

A search is a folder `<tracking.runs>/<name>/` with its settings, its data, and a folder per
trial. Each trial is an ordinary run. Ray Tune schedules the trials, and every result is written to
the search's folder at once, so that a search can be resumed from its folder alone.
"""
