"""One-line messages for a person at a terminal."""

import sys


def notify(text: str) -> None:
    """Write one line to standard error, with the program's name before the text."""
    sys.stderr.write(f"bcl-ray: {text}\n")
    sys.stderr.flush()


def last_line(output: str, default: str) -> str:
    """The last line of a program's output, which mostly names the error; a default if it is empty.

    Args:
        output: All that the program has written.
        default: Text for a program that has written nothing.
    """
    return (output.strip().splitlines() or [default])[-1]
