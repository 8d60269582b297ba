"""Errors of work that has begun."""


class FailedError(RuntimeError):
    """A run, a search or a prediction began and failed; the text says how to go on."""
