"""Train or evaluate a LazyConfig: ``--config-file configs/coco/elsa_t_mrcnn_1x.py [key=value …]``."""

from __future__ import annotations

import argparse
import contextlib

from torch.multiprocessing import ProcessExitedException

from ..config import config_root
from ..d2 import default_argument_parser, launch
from ..engine.stop_signals import REQUEUE, passed_to_children
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
    try:
        with passed_to_children() if args.num_gpus > 1 else contextlib.nullcontext():
            launch(
                train_or_evaluate,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    except ProcessExitedException as error:
        if error.exit_code != REQUEUE:
            raise
        return REQUEUE
    return 0


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
    if args.num_gpus < 1:
        raise UserError(
            f"--num-gpus {args.num_gpus}: it is the number of processes of this machine, at least 1. To train on the "
            "CPU leave it out, and set train.device=cpu"
        )
    if args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--num-machines {args.num_machines} --machine-rank {args.machine_rank}: ranks are 0 to one less than the "
            "number of machines, which is at least 1"
        )
