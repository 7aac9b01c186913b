#!/usr/bin/env python
"""Make the page docs/model_zoo.md from docs/model_zoo.yaml.

make_model_zoo.py                   # write the page
make_model_zoo.py --update          # count parameters and multiply-adds of all configs anew first
make_model_zoo.py --update coco/elsa_t_mrcnn_1x
make_model_zoo.py --check           # say what is out of date or missing, change nothing
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from elsa_det.analysis.model_zoo import config_names, differences, read_zoo, render, update_zoo

DOCS = Path(__file__).resolve().parents[1] / "docs"


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DOCS / "model_zoo.yaml", metavar="FILE", help="the data file")
    parser.add_argument("--page", type=Path, default=DOCS / "model_zoo.md", metavar="FILE", help="the page to write")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--update", nargs="*", metavar="CONFIG", help="count these configs, or all, and store it")
    action.add_argument("--check", action="store_true", help="exit code 1 if the page or an entry is out of date")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 if the page is up to date and every config has its figures."""
    args = argument_parser().parse_args(argv)
    try:
        if args.update is not None:
            changed = update_zoo(args.data, args.update)
            print(f"{len(changed)} entries changed", *changed, sep="\n  ")
        zoo = read_zoo(args.data)
        page, problems = render(zoo), differences(zoo, config_names())
        if not args.check:
            args.page.write_text(page, encoding="utf-8")
        elif not args.page.is_file() or args.page.read_text(encoding="utf-8") != page:
            problems.append(f"{args.page} is not what {args.data} gives: run tools/make_model_zoo.py")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
