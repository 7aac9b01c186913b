"""Errors that speak to the user."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what, where, and what to do. Tools print it alone."""
