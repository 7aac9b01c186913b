#!/usr/bin/env python
"""Kill trainings with SIGKILL at random moments, resume them, and compare them with one that was left alone.

tests/soak/kills.py --kills 20 --output kills
tests/soak/kills.py --kills 200 --seed 3

Every third kill waits until a checkpoint is being written. Writes a table, kills.md, and ends with 1 if a loss, or
anything in the last checkpoint, differs from the run without kills.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

PATIENCE = 600  #: seconds without an iteration after which a run is taken to hang


def start(arguments: list[str], log: Path) -> int:
    """Train in a process of its own, forked so that nothing has to be imported again; gives its id."""
    from elsa_det.commands.train import main

    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def iterations(folder: Path) -> int:
    """Lines that a run has written so far."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / "metrics.json").read_bytes().count(b"\n")
    return 0


def writing(folder: Path) -> str | None:
    """The checkpoint that is being written."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return next((entry.name for entry in entries if entry.name.endswith(".part")), None)
    return None


def kill_within(pid: int, folder: Path, rng: random.Random, aimed: bool) -> str | None:
    """Wait for the moment, and kill. Gives what was under way, None if the run ended by itself."""
    began, due = iterations(folder), rng.randint(0, 3)
    late, wait = time.monotonic() + PATIENCE, None
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        written = iterations(folder) - began
        part = writing(folder) if aimed and written else None
        if wait is None and (part or (not aimed and written >= due)):
            wait = time.monotonic() + rng.uniform(0, 0.004 if aimed else 0.8)
        if wait is not None and time.monotonic() >= wait:
            part = writing(folder)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"after line {iterations(folder)}" + (f", writing {part}" if part else "")
        if time.monotonic() > late:
            os.killpg(pid, signal.SIGKILL)
            raise TimeoutError(f"no end and no iteration in {PATIENCE} s: see {folder}")
        time.sleep(0.0002 if aimed else 0.005)
    return None


def last_checkpoint(folder: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return (folder / "last_checkpoint").read_text()
    return "none"


def differences(whole: Path, killed: Path) -> list[str]:
    """What of a run differs from the one that was left alone."""
    from resumed_run import losses, same

    a, b = losses(whole), losses(killed)
    found = [f"iteration {i}: {a.get(i)} and {b.get(i)}" for i in sorted(a.keys() | b.keys()) if a.get(i) != b.get(i)]
    files = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (whole, killed)]
    found += [f"model_final.pth: {key}" for key in files[0] if not same(files[0][key], files[1].get(key))]
    kept = [sorted(path.name for path in folder.glob("*model*")) for folder in (whole, killed)]
    return found + ([f"files: {kept[0]} and {kept[1]}"] if kept[0] != kept[1] else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=16, help="of a training; each gets as many kills as it takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/kills"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    from resumed_run import CONFIG, write_data

    rng = random.Random(args.seed)
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    output = args.output.resolve()
    log = output / "log.txt"
    data = [*write_data(output / "data"), f"train.max_iter={args.iterations}", "train.checkpointer.period=2"]
    data += ["train.checkpointer.max_to_keep=3", "train.ema.enabled=True", "train.ema.evaluate=raw"]

    def command(folder: Path, workers: int) -> list[str]:
        return [
            *("--config-file", CONFIG, "--resume", *data, f"dataloader.train.num_workers={workers}"),
            f"train.output_dir={folder}",
        ]

    whole = output / "whole"
    _, status = os.waitpid(start(command(whole, 0), log), 0)
    if status:
        print(f"the run without kills failed: see {log}")
        return 1
    rows, found, kills, runs, torn = [], [], 0, 0, 0
    while kills < args.kills:
        folder, runs = output / f"killed{runs}", runs + 1
        while True:
            workers, aimed = rng.choice((0, 2)), kills % 3 == 2
            before = last_checkpoint(folder)
            pid = start(command(folder, workers), log)
            if kills < args.kills:
                moment = kill_within(pid, folder, rng, aimed)
            else:
                moment = None if os.waitpid(pid, 0)[1] == 0 else "FAILED"
            if moment is None:
                break
            kills += 1
            torn += "writing" in moment
            rows.append(f"| {kills} | {runs} | {workers} | {before} | {moment} | {last_checkpoint(folder)} |")
            print(rows[-1], flush=True)
            if moment == "FAILED":
                found.append(f"run {runs} failed: see {log}")
                break
        if not (folder / "model_final.pth").is_file():
            found.append(f"run {runs} has no model_final.pth: see {log}")
            continue
        run_differences = differences(whole, folder)
        found += [f"run {runs}: {difference}" for difference in run_differences]
        rows.append(
            f"| | {runs} | | | finished: {len(run_differences)} differences in {args.iterations} iterations | |"
        )
        print(rows[-1], flush=True)
    head = ["| kill | run | workers | resumed from | killed | last checkpoint |", "|---|---|---|---|---|---|"]
    summary = f"{kills} kills, {torn} of them while a checkpoint was written, in {runs} runs: {len(found)} differences"
    (output / "kills.md").write_text("\n".join([summary, "", *head, *rows, "", *found, ""]))
    print("\n".join([*found, summary]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
