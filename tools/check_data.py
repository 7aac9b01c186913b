#!/usr/bin/env python
"""Check a dataset before training; once installed, ``elsa-det-check-data``."""

from __future__ import annotations

import sys

from elsa_det.commands.check_data import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
