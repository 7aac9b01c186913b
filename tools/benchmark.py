#!/usr/bin/env python
"""Measure configs, side by side; once installed, ``elsa-det-benchmark``."""

from __future__ import annotations

import sys

from elsa_det.commands.benchmark import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
