#!/usr/bin/env python
"""Train on two hosts, and pull the cable between them: network namespaces with host names, addresses and a link.

tests/soak/two_hosts.py              # needs root, and ip of iproute2

1. Two hosts of one process each train a detector; two processes of this machine do the same. Losses and weights must be
   equal, bit by bit.
2. The link goes down while they train. Both commands must end, with exit code 1 and a message, soon after
   ``train.peer_timeout``.

Ends with 1 if either is not so. Where namespaces cannot be made, it says why and ends with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from elsa_det.config import config_root
from elsa_det.data.shapes import SceneSpec, SetSpec, overrides_for, write_shapes

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "lazyconfig_train_net.py")]
HOSTS = ("elsa-det-0", "elsa-det-1")
LINKS = ("elsadet0", "elsadet1")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
URL = f"tcp://{ADDRESSES[0]}:29517"
PEER_TIMEOUT = 4


class NotPossible(Exception):
    """Namespaces cannot be made here."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """Two network namespaces with a link between them; nothing is left of them afterwards."""
    if shutil.which("ip") is None:
        raise NotPossible("there is no ip command (iproute2)")
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", LINKS[0], "netns", HOSTS[0], "type", "veth", "peer", "name", LINKS[1], "netns", HOSTS[1])
        for host, link, address in zip(HOSTS, LINKS, ADDRESSES, strict=True):
            ip("-n", host, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", host, "link", "set", link, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    except subprocess.CalledProcessError as error:
        raise NotPossible(f"{' '.join(error.cmd)}: {error.stderr.strip()}") from error
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)


def start_on(rank: int, arguments: list[str], output: Path) -> subprocess.Popen:
    """The command on a host, which has a name that nobody else knows."""
    shell = f'hostname {HOSTS[rank]} && exec "$@"'
    machine = ["--num-machines", "2", "--machine-rank", str(rank), "--dist-url", URL]
    return subprocess.Popen(
        ["ip", "netns", "exec", HOSTS[rank], "unshare", "--uts", "sh", "-c", shell, "sh", *TRAIN, *machine, *arguments],
        stdout=output.open("w"),
        stderr=subprocess.STDOUT,
        env=environment(),
    )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}


def arguments(data: Path, output: Path, iterations: int) -> list[str]:
    """A small detector on synthetic images; the same random numbers in every run."""
    return [
        *("--config-file", str(config_root() / "quickstart" / "elsa_nano_mrcnn.py")),
        *overrides_for(data),
        "model.backbone.bottom_up.embed_dim=16",
        "dataloader.train.total_batch_size=4",
        "train.log_period=1",
        "train.eval_period=0",
        "train.seed=3",
        "train.deterministic=True",
        f"train.peer_timeout={PEER_TIMEOUT}",
        f"train.max_iter={iterations}",
        f"train.output_dir={output}",
    ]


def losses(output: Path) -> list[float]:
    path = output / "metrics.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["total_loss"] for line in lines if "total_loss" in line]


def train_together(data: Path, folder: Path, iterations: int) -> bool:
    apart, here = folder / "two_hosts", folder / "one_host"
    began = time.monotonic()
    commands = [start_on(rank, arguments(data, apart, iterations), folder / f"together_{rank}.txt") for rank in (0, 1)]
    codes = [command.wait(600) for command in commands]
    print(f"two hosts: exit codes {codes}, {time.monotonic() - began:.0f} s")
    if codes != [0, 0]:
        show(folder, "together")
        return False
    done = subprocess.run(
        [*TRAIN, "--num-gpus", "2", *arguments(data, here, iterations)],
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
    )
    print(f"two processes here: exit code {done.returncode}")
    if done.returncode:
        print(done.stderr[-4000:])
        return False
    first, second = (torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (apart, here))
    equal = sum(torch.equal(first[name], second[name]) for name in second)
    print(f"losses on two hosts: {losses(apart)}\nlosses here:         {losses(here)}")
    print(f"{equal} of {len(second)} tensors of the weights are equal")
    return losses(apart) == losses(here) and len(losses(here)) == iterations and equal == len(second) == len(first)


def pull_the_cable(data: Path, folder: Path) -> bool:
    output = folder / "cable"
    commands = [start_on(rank, arguments(data, output, 10**6), folder / f"cable_{rank}.txt") for rank in (0, 1)]
    while not losses(output) and all(command.poll() is None for command in commands):
        time.sleep(0.5)
    ip("-n", HOSTS[1], "link", "set", LINKS[1], "down")
    pulled = time.monotonic()
    ended = []
    for command in commands:
        try:
            command.wait(60)
        except subprocess.TimeoutExpired:
            command.kill()
        ended.append(f"{time.monotonic() - pulled:.1f} s")
    codes = [command.returncode for command in commands]
    print(f"the link is down: exit codes {codes}, ended after {ended}")
    said = show(folder, "cable", only="error: ")
    return codes == [1, 1] and all(said) and bool(losses(output))


def show(folder: Path, name: str, only: str = "") -> list[list[str]]:
    """Print the end of what both commands wrote."""
    found = []
    for rank in (0, 1):
        lines = [line for line in (folder / f"{name}_{rank}.txt").read_text().splitlines() if only in line]
        print("\n".join(f"  {HOSTS[rank]}: {line}" for line in lines[-20:]))
        found.append(lines)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shapes(folder / "data", SetSpec(train=8, val=2, scene=SceneSpec(image_size=64, max_object=40)))
        try:
            with two_hosts():
                good = train_together(folder / "data", folder, args.iterations)
                good = pull_the_cable(folder / "data", folder) and good
        except NotPossible as error:
            print(f"skipped: {error}")
            return 0
    print("good" if good else "NOT good")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
