#!/usr/bin/env python
"""Draw the figures of a run: predictions beside the ground truth, and the curves of losses and scores.

quickstart_report.py --run output/quickstart
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from elsa_det.engine.figures import save_figure
from elsa_det.engine.predictor import Predictor
from elsa_det.engine.run_pictures import predictions_figure, summary_figure


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, metavar="FOLDER", help="output folder of a training")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the figures go; default: RUN/figures")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: RUN/model_final.pth")
    parser.add_argument("--images", type=int, default=6, metavar="N", help="test images to show; default: 6")
    parser.add_argument("--confidence-threshold", type=float, default=0.5, metavar="SCORE", help="default: 0.5")
    parser.add_argument("--title", default="", help="written above the curves")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 if both figures were drawn, 1 if not."""
    args = argument_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    output = args.output or args.run / "figures"
    try:
        save_figure(summary_figure(args.run, args.title), output / "training.png")
        print(output / "training.png")
        predictor = Predictor(
            args.run / "config.yaml", args.checkpoint or args.run / "model_final.pth", overrides=args.opts
        )
        figure = predictions_figure(predictor, count=args.images, threshold=args.confidence_threshold)
        save_figure(figure, output / "predictions.png")
        print(output / "predictions.png")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
