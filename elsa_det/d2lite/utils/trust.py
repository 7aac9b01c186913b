"""What the user trusts beyond what is harmless, told by an environment variable: no file can set it."""

from __future__ import annotations

import os

TRUST_VARIABLE = "ELSA_DET_TRUST"
"""Holds words with commas between them: names of packages, whose classes and functions configs may then call, and
:data:`CHECKPOINTS` and :data:`PATHS`."""

CHECKPOINTS, PATHS = "checkpoints", "paths"


def trusted() -> frozenset[str]:
    """The words of :data:`TRUST_VARIABLE`."""
    return frozenset(word.strip() for word in os.environ.get(TRUST_VARIABLE, "").split(",") if word.strip())
