#!/usr/bin/env python
"""Serve a page in the browser that shows what a model finds; once installed, ``elsa-det-web-demo``."""

from __future__ import annotations

import sys

from elsa_det.commands.web_demo import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
