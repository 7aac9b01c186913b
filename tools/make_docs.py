#!/usr/bin/env python
"""Make the page docs/config_reference.md from the configs, and from docs/config_keys.yaml what they leave unsaid.

make_docs.py            # write the page
make_docs.py --check    # exit code 1 if the page is out of date, change nothing
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from elsa_det.analysis.config_reference import render_reference

DOCS = Path(__file__).resolve().parents[1] / "docs"


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--page", type=Path, default=DOCS / "config_reference.md", metavar="FILE", help="the page to write"
    )
    parser.add_argument("--keys", type=Path, default=DOCS / "config_keys.yaml", metavar="FILE", help="explanations")
    parser.add_argument("--check", action="store_true", help="exit code 1 if the page is out of date")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 if the page is up to date now."""
    args = argument_parser().parse_args(argv)
    try:
        page = render_reference(yaml.safe_load(args.keys.read_text(encoding="utf-8")))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not args.check:
        args.page.write_text(page, encoding="utf-8")
    elif not args.page.is_file() or args.page.read_text(encoding="utf-8") != page:
        print(f"{args.page} is out of date: run tools/make_docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
