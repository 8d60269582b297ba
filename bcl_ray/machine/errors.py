"""Errors whose texts are meant for a person: one line that says what to do."""

USER_MISTAKE = 2  # exit status of a command that ends with a UserError


class UserError(ValueError):
    """A mistake of the user, found before anything expensive starts; exit status USER_MISTAKE.

    The text names the option or file, its value, the rule, and what to do.
    """


class FailedError(RuntimeError):
    """A run, a search or a prediction that began and failed; exit status 1.

    The text says how to go on.
    """


def flat_text(error: BaseException) -> str:
    """An error's text in one line."""
    return " ".join(str(error).split())
