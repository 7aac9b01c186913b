#!/usr/bin/env python
"""Draw a model's predictions on images.

demo.py --config-file run/config.yaml --checkpoint run/model_final.pth --input a.jpg folder '*.png' --output drawn
"""

from __future__ import annotations

import argparse
import logging
import sys

from rich.progress import Progress

from elsa_det.engine.demo import find_images, run_demo
from elsa_det.engine.predictor import Predictor


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="LazyConfig, .py or a run's config.yaml")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights; default: train.init_checkpoint of the config")
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="images, folders or quoted patterns")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the drawn images go")
    parser.add_argument("--confidence-threshold", type=float, default=0.5, metavar="SCORE", help="default: 0.5")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: train.device of the config")
    parser.add_argument(
        "--allow-mismatch", action="store_true", help="run even if checkpoint and model do not fit each other wholly"
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 if every image was done, 1 if not."""
    args = argument_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        images, problems = find_images(args.input)
        predictor = Predictor(
            args.config_file,
            args.checkpoint,
            overrides=args.opts,
            device=args.device,
            strict=not args.allow_mismatch,
        )
        with Progress() as bar:
            task = bar.add_task("Predicting", total=len(images))
            report = run_demo(
                predictor,
                images,
                args.output,
                threshold=args.confidence_threshold,
                progress=lambda done: bar.update(task, completed=done),
            )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    problems += report.problems
    print(f"{len(report.written)} images written to {args.output} with {report.instances} instances.")
    if problems:
        print(f"{len(problems)} inputs could not be done:", *problems, sep="\n  ", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
