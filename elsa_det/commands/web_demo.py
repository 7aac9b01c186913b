"""Serve a page that takes an image and shows what a model finds in it. Needs: pip install 'elsa_det[web]'.

%(prog)s --config-file run/config.yaml --checkpoint run/model_final.pth
"""

from __future__ import annotations

import argparse
import logging

from ..engine.predictor import Predictor
from ..engine.web_demo import build_page, require_gradio, serve
from .entry import command


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="LazyConfig, .py or a run's config.yaml")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights; default: train.init_checkpoint of the config")
    parser.add_argument("--confidence-threshold", type=float, default=0.5, metavar="SCORE", help="default: 0.5")
    parser.add_argument(
        "--port", type=int, metavar="N", help="TCP port on 127.0.0.1; default: the first free from 7860"
    )
    parser.add_argument("--device", help="such as cpu or cuda:1; default: train.device of the config")
    parser.add_argument(
        "--allow-mismatch", action="store_true", help="run even if checkpoint and model do not fit each other wholly"
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 after Ctrl-C, 1 if it cannot start."""
    args = argument_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    require_gradio()
    predictor = Predictor(
        args.config_file,
        args.checkpoint,
        overrides=args.opts,
        device=args.device,
        strict=not args.allow_mismatch,
    )
    serve(build_page(predictor, threshold=args.confidence_threshold), port=args.port)
    return 0
