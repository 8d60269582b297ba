"""Findings, each the result of one check with a time limit."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bcl_ray.machine.waiting import call_with_limit

CHECK_SECONDS = 15.0  # for each check, even if a server never answers


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    subject: str
    """What was checked, such as S3 or disk."""
    where: str
    """"here", "cluster", or a node's name."""
    good: bool
    """Whether it is in order."""
    text: str
    """The state, or what is wrong and what to do."""


def run_check(
    subject: str, where: str, check: Callable[[], str], seconds: float = CHECK_SECONDS
) -> Finding:
    """Run one check; one that takes too long is left to itself.

    Args:
        check: Returns the state, or raises an error with what is wrong and what to do.
    """
    try:
        return Finding(subject, where, good=True, text=call_with_limit(seconds, check))
    except Exception as error:
        has_own_text = isinstance(error, (ValueError, OSError)) and str(error)
        text = str(error) if has_own_text else f"{type(error).__name__}: {error}"
        return Finding(subject, where, good=False, text=" ".join(text.split()))


def merge(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Combine equal findings of several nodes into one, in the order of their first ones."""
    nodes: dict[tuple[str, bool, str], list[str]] = {}
    for finding in findings:
        nodes.setdefault((finding.subject, finding.good, finding.text), []).append(finding.where)
    for (subject, good, text), names in nodes.items():
        where = names[0] if len(names) == 1 else f"{len(names)} nodes"
        # A problem names its nodes, for there is something to do on them.
        suffix = "" if good or len(names) == 1 else f" (on {', '.join(names)})"
        yield Finding(subject, where, good, text + suffix)
