"""Measure configs: images a second, latency, peak memory, the parts of a step; several configs side by side.

%(prog)s --config-file configs/coco/elsa_t_mrcnn_1x.py --random 800x1333
%(prog)s --config-file a.py --config-file b.py model.backbone.out_channels=64 --task train train.device=cuda
%(prog)s --config-file a.py --task data --workers 0 2 4

Overrides behind a config file are for that config, those at the end behind another option are for all. Configs take
turns step by step; the memory of each is read in a process of its own. Models have their initial weights unless
--load-weights is given: for inference that makes a difference, as the work depends on what is found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..benchmark.cases import parse_size
from ..benchmark.report import busy_warning, hardware, machine
from ..benchmark.runner import Settings
from ..benchmark.throughput import Figures, measure, measure_memory
from ..benchmark.throughput_report import print_figures
from ..benchmark.workload import DATA, INFERENCE, TASKS, TRAIN, Workload
from ..config import find_config
from ..d2 import describe_provider
from ..ops.registration import use_compiled
from .entry import command

_STEPS = {INFERENCE: 50, TRAIN: 20, DATA: 50}


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file",
        nargs="+",
        action="append",
        required=True,
        metavar=("FILE", "KEY=VALUE"),
        help="a config, with overrides for it alone; give it again for another one to compare with",
    )
    parser.add_argument("--task", choices=TASKS, default=INFERENCE, help=f"default: {INFERENCE}")
    parser.add_argument("--batch", type=int, metavar="N", help="images of a batch; default: what the config says")
    parser.add_argument(
        "--random", type=_size, metavar="SIZE", help="made-up images, 512 or 800x1333 (height x width), not the data"
    )
    parser.add_argument("--objects", type=int, default=8, metavar="N", help="on a made-up image; default: 8")
    parser.add_argument("--load-weights", action="store_true", help="load train.init_checkpoint; default: initial ones")
    parser.add_argument("--iterations", type=int, metavar="N", help=f"steps that count; default: {_STEPS}")
    parser.add_argument("--warmup", type=int, default=5, metavar="N", help="steps before that; default: 5")
    parser.add_argument(
        "--pool", type=int, default=8, metavar="N", help="batches that inference cycles through; default: 8"
    )
    parser.add_argument("--split", choices=["train", "test"], default="train", help="of --task data; default: train")
    parser.add_argument(
        "--workers", type=int, nargs="+", metavar="N", help="of the data loader; several with --task data"
    )
    parser.add_argument("--threads", type=int, metavar="N", help=f"of torch; default: {torch.get_num_threads()}")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory, which takes a process each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="overrides for all configs")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 for what cannot be measured, 130 if interrupted (what was measured by then is shown
    and written), 2 for a mistake on the command line."""
    parser = argument_parser()
    args = parser.parse_args(argv)
    for name, fewest in (("iterations", 1), ("warmup", 0), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < fewest:
            parser.error(f"--{name} must be at least {fewest}, got {value}")
    if args.workers is not None and len(args.workers) > 1 and args.task != DATA:
        parser.error("several numbers of --workers are compared with --task data only")
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    iterations = args.iterations or _STEPS[args.task]
    load = os.getloadavg()[0]

    console = Console() if sys.stdout.isatty() else Console(width=160)
    figures: list[Figures] = []
    interrupted = False
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(text: str) -> None:
            progress.update(task, description=text)
            if not sys.stderr.isatty() and not text.startswith("step"):
                print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

        try:
            measure(_workloads(args), figures, warmup=args.warmup, iterations=iterations, tell=tell)
            if not args.no_memory:
                measure_memory(figures, threads, tell)
        except KeyboardInterrupt:
            interrupted = True

    device = "cuda" if any(figure.device.startswith("cuda") for figure in figures) else "cpu"
    settings = Settings(threads=threads, processes=1, repeats=iterations)
    described = machine(device, settings, use_compiled(torch.device(device), torch.float32, True), load)
    described["framework"] = describe_provider()
    line = " · ".join([*hardware(described), described["framework"], f"{iterations} steps after {args.warmup}"])
    print_figures(console, figures, line)
    if args.opts:
        console.print(f"all with: {' '.join(args.opts)}", highlight=False, markup=False)
    if busy_warning(load):
        console.print(f"[bold yellow]{busy_warning(load)}[/]", highlight=False)
    if args.json:
        document = {"machine": described, "task": args.task, "warmup": args.warmup, "iterations": iterations}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**document, "results": [figure.to_dict() for figure in figures]}, indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")
    if interrupted:
        console.print("[bold red]interrupted:[/] this is what was measured by then", highlight=False)
    return 130 if interrupted else 0


def _workloads(args: argparse.Namespace) -> list[Workload]:
    works = [
        Workload(
            config_file=str(find_config(file).absolute()),
            overrides=(*overrides, *args.opts),
            distinct=tuple(overrides),
            task=args.task,
            batch=args.batch,
            random_size=args.random,
            objects=args.objects,
            load_weights=args.load_weights,
            pool=args.pool,
            split=args.split,
        )
        for file, *overrides in args.config_file
    ]
    return [work.with_workers(count) for work in works for count in args.workers] if args.workers else works


def _size(text: str) -> tuple[int, int]:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
