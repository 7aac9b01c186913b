"""Errors that speak to the user, and how they list names."""

from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what, where, and what to do. Tools print it alone."""


def list_some(names: Iterable[str], most: int) -> str:
    """The first ``most`` names, and how many more there are: ``a, b and 3 more``."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
