#!/usr/bin/env python
"""Convert published checkpoints, and back; once installed, ``elsa-det-convert-checkpoint``."""

from __future__ import annotations

import sys

from elsa_det.commands.convert_checkpoint import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
