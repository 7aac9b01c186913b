#!/usr/bin/env python
"""Draw what the training loader feeds the model; once installed, ``elsa-det-visualize-data``."""

from __future__ import annotations

import sys

from elsa_det.commands.visualize_data import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
