#!/usr/bin/env python
"""Train or evaluate a LazyConfig: ``--config-file configs/coco/elsa_t_mrcnn_1x.py [key=value …]``."""

from __future__ import annotations

import sys

from elsa_det.d2 import default_argument_parser, launch
from elsa_det.engine.training import main
from elsa_det.errors import UserError

if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check config and data, build the model, try one batch and estimate the memory; write and train nothing",
    )
    args = parser.parse_args()
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except (UserError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
