"""Draw what the training loader feeds the model, after augmentation.

%(prog)s --config-file configs/coco/elsa_t_mrcnn_1x.py --output samples.png dataset.train.json_file=…
"""

from __future__ import annotations

import argparse

from ..config import load_config
from ..engine.data_preview import preview_training_data
from .entry import command


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="LazyConfig, .py or a run's config.yaml")
    parser.add_argument("--output", required=True, metavar="FILE", help="picture to write, .png or .jpg")
    parser.add_argument("--count", type=int, default=12, metavar="N", help="images; default: 12")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="augmentations of each; default: 2")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the augmentation; default: 0")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 if the picture was drawn, 1 if not."""
    args = argument_parser().parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    count = preview_training_data(cfg, args.output, count=args.count, repeats=args.repeats, seed=args.seed)
    print(f"{count} samples drawn to {args.output}")
    return 0
