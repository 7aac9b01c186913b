#!/usr/bin/env python
"""Parameters, multiply-adds and memory of a config's model; once installed, ``elsa-det-analyze-model``."""

from __future__ import annotations

import sys

from elsa_det.commands.analyze_model import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
