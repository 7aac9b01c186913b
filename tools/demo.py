#!/usr/bin/env python
"""Run a model on images, videos or a camera; once installed, ``elsa-det-demo``."""

from __future__ import annotations

import sys

from elsa_det.commands.demo import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
