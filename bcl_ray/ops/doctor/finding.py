"""One thing that was looked at, and the time limit of looking."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

SECONDS = 15.0  # for each check, whatever swallows its packets


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        subject: S3, disk, …
        where: "here", or a node's name.
        good: whether it is in order.
        text: what is so, or what is wrong and what to do.
    """

    subject: str
    where: str
    good: bool
    text: str


def look(subject: str, where: str, check: Callable[[], str], seconds: float = SECONDS) -> Finding:
    """Run one check, which is left to itself when its time is up.

    Args:
        check: returns what is in order, or raises what is not, with what to do.
    """
    outcome: list[tuple[bool, str]] = []

    def run() -> None:
        try:
            outcome.append((True, check()))
        except Exception as error:
            plain = isinstance(error, (ValueError, OSError)) and str(error)
            text = str(error) if plain else f"{type(error).__name__}: {error}"
            outcome.append((False, " ".join(text.split())))

    thread = threading.Thread(target=run, name=f"look-{subject}", daemon=True)
    thread.start()
    thread.join(seconds)
    late = (False, f"no answer within {seconds:g} s: is it overloaded, or its way blocked?")
    return Finding(subject, where, *(outcome or [late])[0])


def merged(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Nodes that say the same as one finding, in the order of the first of them."""
    where: dict[tuple[str, bool, str], list[str]] = {}
    for finding in findings:
        where.setdefault((finding.subject, finding.good, finding.text), []).append(finding.where)
    for (subject, good, text), names in where.items():
        place = names[0] if len(names) == 1 else f"{len(names)} nodes"
        # Which nodes matters where there is something to do on them.
        named = "" if good or len(names) == 1 else f" (on {', '.join(names)})"
        yield Finding(subject, place, good, text + named)
