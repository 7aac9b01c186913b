"""Check a COCO-format dataset before training: what it holds, what would be dropped and why, what is wrong.

%(prog)s --json annotations/instances_train.json --images train --contact-sheet sheet.png
%(prog)s --config-file configs/coco/elsa_t_mrcnn_1x.py dataset.train.json_file=… dataset.train.image_root=…
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ..config import load_config
from ..data.coco_check import HEADERS, NAMES, PIXELS, CocoReport, check_coco
from ..engine.data_report import coco_contact_sheet, coco_tables, datasets_of
from ..errors import UserError
from .entry import command


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="COCO-format annotations")
    parser.add_argument("--images", metavar="FOLDER", help="folder that the json's file_name entries start from")
    parser.add_argument("--config-file", metavar="FILE", help="check the train and test data of a config instead")
    parser.add_argument(
        "--look",
        choices=[NAMES, HEADERS, PIXELS],
        default=PIXELS,
        help="at the images' names, also at their sizes, or decode them; default: pixels",
    )
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="draw annotated images on one page (.png)")
    parser.add_argument("--count", type=int, default=24, metavar="N", help="images on the contact sheet; default: 24")
    parser.add_argument("--shown", type=int, default=5, metavar="N", help="faults shown of each kind; default: 5")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 if the data can be trained on, 1 if there are errors."""
    args = argument_parser().parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    sources = _sources(args)
    reports = [_check(json_file, images, args.look, console) for json_file, images in sources]
    for report in reports:
        console.print(f"{report.json_file}\n{report.image_root}", soft_wrap=True, highlight=False)
        for table in coco_tables(report, shown=args.shown):
            console.print(table)
    if args.contact_sheet:
        for report in reports:
            suffix = f"_{Path(report.json_file).stem}" if len(reports) > 1 else ""
            path = args.contact_sheet.with_name(args.contact_sheet.stem + suffix + args.contact_sheet.suffix)
            coco_contact_sheet(report, path, count=args.count)
            console.print(f"contact sheet: {path}", highlight=False)
    errors = sum(len(report.of("error")) for report in reports)
    console.print(f"{errors} errors" if errors else "no errors", style="bold red" if errors else "bold green")
    return 1 if errors else 0


def _sources(args: argparse.Namespace) -> list[tuple[str, str]]:
    if args.config_file:
        return datasets_of(load_config(args.config_file, args.opts))
    if args.opts:
        raise UserError(f"{args.opts[0]!r} is not understood: changes to a config need --config-file")
    if not (args.json and args.images):
        raise UserError("give --json and --images, or --config-file")
    return [(args.json, args.images)]


def _check(json_file: str, images: str, look: str, console: Console) -> CocoReport:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"Checking {json_file}", total=None)
        return check_coco(
            json_file, images, look=look, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
