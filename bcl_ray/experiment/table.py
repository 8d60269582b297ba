"""Tables of what an option can be, by name.

An entry has a name, one line of text, and a reference to its code: an object, or an address
"package.module:object". An address is imported at its first use, so that a configuration can be
read and checked without torch. Options, help texts and error messages list the tables' entries.
"""

import difflib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bcl_ray.machine.errors import UserError

Code = str | Callable[..., Any]


@dataclass(frozen=True)
class Choice:
    """An entry of a table."""

    name: str
    text: str
    """One line, for help texts and documentation."""


EntryType = TypeVar("EntryType", bound=Choice)


class Table(Generic[EntryType]):
    """The choices of one option, in the order in which they are listed.

    Args:
        option: Name of the option in error messages, such as "loss.kind".
        entries: The built-in choices.
    """

    def __init__(self, option: str, *entries: EntryType) -> None:
        self.option = option
        self._entries = {entry.name: entry for entry in entries}

    def __iter__(self) -> Iterator[EntryType]:
        return iter(self._entries.values())

    def __getitem__(self, name: str) -> EntryType:
        """The entry with this name.

        Raises:
            ValueError: There is none; the message suggests the nearest name.
        """
        family = f"{name.partition('/')[0]}/*"  # an entry for all names with this beginning
        if name != family and family in self._entries:
            return self._entries[family]
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{self.option} '{name}' must be one of {', '.join(self.names)}{hint}")
        return self._entries[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all entries."""
        return tuple(self._entries)

    def checked(self, name: str) -> str:
        """The name itself, if the table has such an entry; for use as a validator.

        Raises:
            ValueError: There is none.
        """
        self[name]
        return name

    def add(self, entry: EntryType) -> None:
        """Add an entry. An equal entry may be added again.

        Raises:
            ValueError: The table has a different entry with this name.
        """
        present = self._entries.setdefault(entry.name, entry)
        if present != entry:
            raise UserError(
                f"{self.option} '{entry.name}' exists already ({present.text}): "
                "give yours another name"
            )

    def described(self) -> str:
        """All entries with their texts, for a help text."""
        return "; ".join(f"{entry.name}: {entry.text}" for entry in self)


def code(reference: Code) -> Any:
    """The object that an entry refers to, imported if the reference is an address.

    Raises:
        ImportError: The module does not exist, or one of its own imports fails.
        AttributeError: The module has no such object.
    """
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
