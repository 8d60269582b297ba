"""Errors whose texts are for a person: one line that says what to do."""


class UserError(ValueError):
    """A mistake of the user, found before anything expensive starts: exit status 2.

    The text names the option or file, its value, the rule, and what to do.
    """


class FailedError(RuntimeError):
    """A run, a search or a prediction began and failed: exit status 1; it says how to go on."""
