#!/usr/bin/env python
"""Write ADE20K label maps that count the 150 classes from 0, with 255 for "ignored", beside the published ones.

Training does not need them: the published maps are read as they are. Other programs, Detectron2's own
ade20k_sem_seg_* datasets among them, do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from elsa_det.data.semantic.ade20k import PREPARED, write_prepared_labels


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/ADEChallengeData2016"), help="default: %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = argument_parser().parse_args(argv)
    try:
        with Progress(TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
            task = bar.add_task("preparing", total=None)
            written = write_prepared_labels(
                args.root, progress=lambda done, total: bar.update(task, completed=done, total=total)
            )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{written} label maps written to {args.root / PREPARED}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
