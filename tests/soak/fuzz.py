#!/usr/bin/env python
"""Feed readers with broken and hostile files: they may refuse them by named errors, and do nothing else.

tests/soak/fuzz.py --inputs 100000
tests/soak/fuzz.py --inputs 20000 --only configs --seed 3 --output faults

Prints inputs, seconds and outcomes of each target; ends with 1 if there was a crash, a hang or an unnamed error. The
inputs of these are kept in the output folder, one file for each place where they arose.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

HANG = 20  #: seconds
_MEMORY = 12 * 2**30  #: bytes of addresses: what asks for more gets a MemoryError


class Hang(BaseException):
    """An input took longer than :data:`HANG` seconds."""


def fuzz(name: str, inputs: int, seed: int, output: Path) -> tuple[collections.Counter[str], list[str]]:
    """Run a target in this process.

    Returns:
        How often each outcome occurred, and a line for each fault.
    """
    from fuzz_targets import TARGETS

    from elsa_det.errors import UserError

    outcomes: collections.Counter[str] = collections.Counter()
    faults: dict[str, str] = {}
    rng = random.Random(f"{name} {seed}")
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared, prefix="fuzz_") as folder:
        target = TARGETS[name](Path(folder))
        last = Path(shared or output) / f"fuzz_{name}_last_{os.getppid()}"
        for number in range(inputs):
            data = rng.choice(target.seeds)
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                with contextlib.suppress(Exception):  # what is no json or archive any more is not changed as one
                    data = target.mutate(rng, data)
            last.write_bytes(data)
            try:
                with _alarm(HANG):
                    outcome = target.run(data)
            except (UserError, FileNotFoundError) as error:
                outcome = f"{type(error).__name__}: {_kind(str(error))}"
            except (Exception, Hang) as error:
                outcome = f"FAULT {type(error).__name__}"
                place = _place(error)
                if place not in faults:
                    kept = output / f"{name}_{len(faults)}"
                    kept.write_bytes(data)
                    told = f"{type(error).__name__}: {str(error)[:200]}"
                    faults[place] = f"{told} at {place}, input {number}, kept as {kept}"
                    print("FAULT", faults[place], flush=True)
            outcomes[outcome] += 1
        last.unlink(missing_ok=True)
    return outcomes, list(faults.values())


@contextlib.contextmanager
def _alarm(seconds: int) -> Any:
    def ring(*_: Any) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _kind(message: str) -> str:
    """Messages that differ in what they quote only are of one kind."""
    message = re.sub(
        r"'[^']*'|\"[^\"]*\"|\S*/\S*|\d[\d,.]*|override .*?:", "…", message.splitlines()[0] if message else ""
    )
    return re.sub(r"(… ?)+", "… ", message)[:60]


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "elsa_det" in frame.filename] or list(frames)
    return " < ".join(dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (frames[-1], own[-1])))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 if nothing but named errors occurred."""
    names = ("coco", "labels", "checkpoints", "configs", "overrides")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, metavar="N", help="of each target; default: 100000")
    parser.add_argument("--only", choices=names, action="append", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for inputs with faults; default: a new one")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    output = args.output or Path(tempfile.mkdtemp(prefix="fuzz_faults_"))
    output.mkdir(parents=True, exist_ok=True)
    if args.inside:
        return _inside(args, output)
    failed = []
    for name in args.only or names:  # each in a process of its own, which may crash
        command = [sys.executable, __file__, "--inside", "--only", name, "--inputs", str(args.inputs)]
        code = subprocess.run([*command, "--seed", str(args.seed), "--output", str(output)]).returncode
        if code not in (0, 1):
            crash = output / f"{name}_crash"
            last = Path("/dev/shm" if os.path.isdir("/dev/shm") else output) / f"fuzz_{name}_last_{os.getpid()}"
            if last.is_file():
                shutil.move(last, crash)
            print(f"{name}: the process ended with {code} at the input kept as {crash}")
        failed += [name] * (code != 0)
    print(f"faults in: {', '.join(failed)} (see {output})" if failed else "no faults")
    return 1 if failed else 0


def _inside(args: argparse.Namespace, output: Path) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    name = args.only[0]
    import fuzz_targets  # noqa: F401  takes its time, which is not that of the inputs

    start = time.monotonic()
    outcomes, faults = fuzz(name, args.inputs, args.seed, output)
    seconds = time.monotonic() - start
    print(f"{name}: {args.inputs:,} inputs, {seconds:.0f} s, {len(outcomes)} distinct outcomes, {len(faults)} faults")
    by_class = collections.Counter()
    for outcome, count in outcomes.items():
        by_class[outcome.partition(":")[0]] += count
    for kind, count in by_class.most_common():
        print(f"  {count:8,} {kind}")
    for outcome, count in outcomes.most_common(12):
        print(f"      {count:8,} {outcome}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
