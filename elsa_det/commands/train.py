"""Train or evaluate a LazyConfig: ``--config-file configs/coco/elsa_t_mrcnn_1x.py [key=value …]``."""

from __future__ import annotations

import argparse

from ..config import config_root, find_config
from ..d2 import default_argument_parser
from ..engine.launching import run_job
from ..engine.training import main as train_or_evaluate
from ..errors import UserError
from .entry import command


def argument_parser() -> argparse.ArgumentParser:
    parser = default_argument_parser()
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check config and data, build the model, try one batch and estimate the memory; write and train nothing",
    )
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Train or evaluate.

    Returns:
        The exit code: 0 if all was done, 1 for what the user has to mend, 75 where SIGTERM or SIGUSR1 ended a training
        that ``--resume`` goes on with, 130 after Ctrl-C.
    """
    args = argument_parser().parse_args(argv)
    check_arguments(args)
    args.config_file = str(find_config(args.config_file))
    return run_job(train_or_evaluate, args)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise for options that no training can have.

    Raises:
        UserError: naming the option and the remedy.
    """
    if not args.config_file:
        raise UserError(
            f"no config is given: use --config-file FILE, with one of your own or one of those in {config_root()}"
        )
    options = [word for word in args.opts or [] if word.startswith("--")]
    if options:
        raise UserError(f"{options[0]} stands behind a key=value: options come first, changes to the config last")
