"""A command whose processes do what ``--case`` says: for tests of how a job of several processes ends."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

import torch
from torch import distributed as dist
from torch.utils.data import DataLoader

from elsa_det.commands.entry import command
from elsa_det.d2 import comm, default_argument_parser
from elsa_det.engine.launching import run_job
from elsa_det.errors import UserError


def work(args: argparse.Namespace) -> None:
    """Everybody sums ranks; then the last rank does something that it should not, while the others wait for it."""
    total = torch.tensor(float(comm.get_rank()))
    if comm.get_world_size() > 1:
        dist.all_reduce(total)
    me = f"rank {comm.get_rank()} local {comm.get_local_rank()} of {comm.get_world_size()}"
    sys.stdout.write(
        f"{me}: {total.item()}\n"
    )  # in one piece: print writes the line's end apart where it is unbuffered
    sys.stdout.flush()
    if args.case == "all complain":
        raise UserError("x=1: use 2")
    if args.case == "killed beside its workers":
        loaded = iter(DataLoader(range(100), num_workers=1))  # forked
        next(loaded)
    if comm.get_rank() == args.rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        misbehave(args.case)
    dist.all_reduce(total)


def misbehave(case: str) -> None:
    if case == "raises":
        raise ValueError("nine is odd\nmore")
    if case == "complains":
        raise UserError("x=1: use 2")
    if case.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "exits":
        os._exit(0)
    if case == "hangs":
        time.sleep(100)


@command
def main(argv: list[str] | None = None) -> int:
    parser = default_argument_parser()
    parser.add_argument("--case", default="")
    parser.add_argument("--rank", type=int, default=1)
    return run_job(work, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
