#!/usr/bin/env python
"""Train or evaluate a LazyConfig: ``--config-file configs/coco/elsa_t_mrcnn_1x.py [key=value …]``

Once installed, ``elsa-det-train``.
"""

from __future__ import annotations

import sys

from elsa_det.commands.train import argument_parser, main

__all__ = ["argument_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
