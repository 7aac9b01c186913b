"""Parameters, multiply-adds and activation memory of a config's model, part by part. Nothing is computed: seconds.

%(prog)s --config-file configs/coco/elsa_t_mrcnn_1x.py --image-size 800x1280
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from ..analysis import Regions, analyze_config
from ..analysis.report import analysis_data, analysis_lines, analysis_table
from ..benchmark.cases import parse_size
from ..config import load_config
from .entry import command


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="LazyConfig, .py or a run's config.yaml")
    parser.add_argument(
        "--image-size",
        type=_size,
        metavar="HxW",
        help="pixels, before padding; default: 800x1280, for segmentors 512x2048 (as in the published figures)",
    )
    parser.add_argument("--proposals", type=_count, default=1000, metavar="N", help="a box head; default: 1000")
    parser.add_argument("--mask-rois", type=_count, default=100, metavar="N", help="regions a mask head; default: 100")
    parser.add_argument("--depth", type=int, default=3, metavar="N", help="levels of parts to show; default: 3")
    parser.add_argument("--no-memory", action="store_true", help="do not count what is kept for the backward")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every module")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    args = argument_parser().parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    analysis = analyze_config(
        cfg, args.image_size, regions=Regions(args.proposals, args.mask_rois), memory=not args.no_memory
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(analysis_data(analysis), indent=1) + "\n", encoding="utf-8")
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(analysis_table(analysis, args.depth, title=args.config_file))
    for line in analysis_lines(analysis):
        console.print(line, highlight=False)
    return 0


def _size(text: str) -> tuple[int, int]:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)
