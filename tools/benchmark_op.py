#!/usr/bin/env python
"""Compare the ELSA operator, the attention module and the ELSA-T backbone with their peers: time and peak memory.

benchmark_op.py --goals                                   the table of goals, on the CPU or with --device cuda on a GPU
benchmark_op.py --what core --stages 1 --sizes 512 800x1333
benchmark_op.py --what growth --figure growth.png --json growth.json

Peers take turns in one process and are compared by ratios of medians; fresh processes repeat that, and the worst ratio
counts. On the CPU everything is measured twice: with memory that malloc retains, which is stable, and with malloc's
defaults, which is what users see.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from elsa_det.benchmark.cases import DTYPES, Case, parse_size
from elsa_det.benchmark.goals import (
    CPU_GOALS,
    GPU_GOALS,
    GROWTH_SIDES,
    Goal,
    Results,
    cpu_results,
    measure_cpu_goals,
    measure_gpu_goals,
    results_to_list,
    unmet,
)
from elsa_det.benchmark.peers import BUILDERS, USUAL
from elsa_det.benchmark.report import busy_warning, goals_table, machine, machine_line, main_mode, print_records
from elsa_det.benchmark.runner import DEFAULT, RETAINED, Runner, Settings

_GROWTH_PEERS = {
    "core": ("elsa", "unfold", "shifted", "depthwise", "window"),
    "backbone": ("elsa", "unfold", "swin"),
}


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--what",
        nargs="+",
        choices=["core", "module", "backbone", "growth", "goals"],
        default=["core", "module", "backbone"],
        help="default: core module backbone",
    )
    parser.add_argument("--goals", action="store_true", help="the same as --what goals")
    parser.add_argument(
        "--sizes", nargs="+", type=_size, metavar="SIZE", help="images, 512 or 800x1333; default: 512, growth: 256…2048"
    )
    parser.add_argument("--stages", nargs="+", type=int, choices=[1, 2, 3, 4], help="default: 1 2 3, growth: 1")
    parser.add_argument("--peers", nargs="+", choices=sorted({p for level in BUILDERS.values() for p in level}))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: float32, on a GPU bfloat16")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images; default: 1")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="default: 2")
    parser.add_argument("--malloc", nargs="+", choices=[RETAINED, DEFAULT], default=[RETAINED, DEFAULT])
    parser.add_argument("--processes", type=int, metavar="N", help="fresh processes; default: 3, with --quick 1")
    parser.add_argument("--repeats", type=int, metavar="N", help="samples of a median; default: 9, with --quick 3")
    parser.add_argument("--quick", action="store_true", help="one process and three samples: a first look, no result")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw time and memory against pixels (.png, .svg)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if a goal's must is not met or not measured, 130 if interrupted (what was measured by
    then is shown and written), 2 for a mistake on the command line."""
    parser = argument_parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    settings = Settings(
        threads=args.threads,
        processes=args.processes or (1 if args.quick else 3),
        repeats=args.repeats or (3 if args.quick else 9),
        modes=tuple(args.malloc),
    )
    load = os.getloadavg()[0]
    if busy_warning(load):
        print(busy_warning(load), file=sys.stderr)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(text: str) -> None:
            progress.update(task, description=text)
            if not sys.stderr.isatty():
                print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

        runner = Runner(settings, progress=tell)
        try:
            goals, results = _measure(args, runner)
            interrupted = False
        except KeyboardInterrupt:
            goals, results, interrupted = (), {}, True
    records = runner.records

    described = machine(args.device, settings, runner.compiled, load)
    line = machine_line(described)
    modes = settings.modes_on(args.device)
    print_records(console, records, modes)
    if goals:
        title = "Goals, K = 7" + (", fp32, 512², batch 1" if args.device == "cpu" else ", bf16, 800×1333, batch 2")
        console.print(goals_table(goals, results, title + "; numbers of stages 1 / 2 / 3"))
    console.print(line, highlight=False)
    if busy_warning(load):
        console.print(f"[bold yellow]{busy_warning(load)}[/]", highlight=False)
    if args.json:
        document: dict[str, Any] = {"machine": described, "settings": asdict(settings), "records": records.to_list()}
        document["goals"] = results_to_list(goals, results)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if args.figure:
        from elsa_det.benchmark.figure import growth_figure

        try:
            figure = growth_figure(records, main_mode(modes), title="The ELSA operator and its peers", note=line)
        except ValueError as error:
            console.print(f"no figure: {error}", highlight=False)
        else:
            args.figure.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(args.figure, facecolor="white")
    missed = unmet(goals, results)
    if missed:
        console.print(f"[bold red]not met:[/] {', '.join(missed)}", highlight=False)
    if interrupted:
        console.print("[bold red]interrupted:[/] this is what was measured by then", highlight=False)
        return 130
    return 1 if missed else 0


def _measure(args: argparse.Namespace, runner: Runner) -> tuple[tuple[Goal, ...], Results]:
    if "goals" in args.what:
        if args.device == "cuda":
            return GPU_GOALS, measure_gpu_goals(runner)[1]
        return CPU_GOALS, cpu_results(measure_cpu_goals(runner))
    for case, peers in _cases(args):
        runner.measure(case, peers)
    return (), {}


def _cases(args: argparse.Namespace) -> list[tuple[Case, list[str]]]:
    """The cases that were asked for, with their peers."""
    dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    common: dict[str, Any] = dict(batch=args.batch, dtype=dtype, device=args.device)
    found: list[tuple[Case, list[str]]] = []
    for what in args.what:
        growth = what == "growth"
        sizes = args.sizes or ([(side, side) for side in GROWTH_SIDES] if growth else [(512, 512)])
        for level in ("core", "backbone") if growth else (what,):
            usual = (_GROWTH_PEERS if growth else USUAL)[level]
            peers = [peer for peer in args.peers or usual if peer in BUILDERS[level]]
            stages = [0] if level == "backbone" else args.stages or ([1] if growth else [1, 2, 3])
            for stage in stages:
                for height, width in sorted(sizes):
                    found.append((Case(level, height, width, stage=stage, **common), peers))
    return [(case, peers) for case, peers in found if peers]


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.goals:
        args.what = ["goals"]
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; leave it out to measure the CPU")
    for name in ("batch", "threads", "processes", "repeats"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if "goals" in args.what:
        fixed = [f"--{name}" for name in ("sizes", "stages", "peers", "dtype") if getattr(args, name) is not None]
        if len(args.what) > 1 or fixed or args.batch != 1:
            parser.error("the goals fix cases, sizes, stages, peers and dtype; measure others with a run of their own")
    elif not _cases(args):
        parser.error(f"--peers {' '.join(args.peers)}: none of them is compared at {', '.join(args.what)}")


def _size(text: str) -> tuple[int, int]:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
