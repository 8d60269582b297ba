"""Many training runs that belong together, scheduled by Ray Tune: searches and studies.

A sweep is a search or a study. A search looks for the best values of options on validation data; a
study compares configurations over several seeds. Either is a folder `<tracking.runs>/<name>/` with
a folder per trial. Each trial is an ordinary run, and every result is written to the folder at
once, from which alone a sweep is resumed.
"""
