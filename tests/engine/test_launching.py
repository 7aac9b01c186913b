"""Jobs of several processes over Gloo on the CPU: who they are, however they are started, and how they end."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import job_script
import pytest
import torch

from elsa_det.engine import launching

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]
SCRIPT = Path(job_script.__file__)


@pytest.fixture
def config(tmp_path):
    def write(**train):
        path = tmp_path / "config.py"
        path.write_text(f"train = {dict(device='cpu', dist_timeout=60.0, **train)!r}\n")
        return str(path)

    return write


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _command(argv: list[str], environ: dict[str, str], output: Path) -> None:
    """In a forked process, which has everything imported already; the launcher forks as well."""
    sys.stdout = sys.stderr = output.open("w", buffering=1)
    os.dup2(sys.stdout.fileno(), 1)  # what C++ writes
    os.dup2(sys.stdout.fileno(), 2)
    os.environ.update(environ)
    launching._START_METHOD = "fork"
    sys.exit(job_script.main(argv))


class Commands:
    """Commands that run at the same time."""

    def __init__(self, folder: Path, commands: list[tuple[list[str], dict[str, str]]]) -> None:
        self.outputs = [folder / f"output_{i}" for i in range(len(commands))]
        self.processes = [
            mp.get_context("fork").Process(target=_command, args=(*command, output))
            for command, output in zip(commands, self.outputs, strict=True)
        ]
        for process, output in zip(self.processes, self.outputs, strict=True):
            output.touch()
            process.start()

    def wait(self, seconds: float = 20) -> list[tuple[int | None, str]]:
        """Exit codes, and what was written; a command that does not end in time is killed."""
        deadline = time.monotonic() + seconds
        while any(process.exitcode is None for process in self.processes) and time.monotonic() < deadline:
            time.sleep(0.05)  # join would also wait for processes that were forked by these
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return [(code, output.read_text()) for code, output in zip(codes, self.outputs, strict=True)]


@pytest.fixture
def run(tmp_path):
    def run(*commands, environ=None, seconds=20):
        environ = environ or [{}] * len(commands)
        return Commands(tmp_path, list(zip(commands, environ, strict=True))).wait(seconds)

    return run


def slurm(rank: int) -> dict[str, str]:
    """What srun tells a task: two nodes of one task each, in step 3 of a job."""
    return {
        "SLURM_JOB_ID": "17",
        "SLURM_STEP_ID": "3",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NODELIST": "localhost,other",
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(rank),
        "SLURM_LOCALID": "0",
    }


def two_machines(port: int, *more: str) -> list[list[str]]:
    url = f"tcp://127.0.0.1:{port}"
    return [["--num-machines", "2", "--machine-rank", str(r), "--dist-url", url, *more] for r in range(2)]


def test_launcher(run, config):
    argv = ["--config-file", config(), "--num-gpus", "2"]
    [(code, output)] = run(argv, environ=[{"OMP_NUM_THREADS": "3"}])
    assert code == 0
    first, *others = output.splitlines()
    assert first == "2 processes on the CPU, over Gloo; threads of each: 3 (OMP_NUM_THREADS)"
    assert sorted(others) == ["rank 0 local 0 of 2: 1.0", "rank 1 local 1 of 2: 1.0"]


def test_launchers_of_two_machines(run, config, port):
    (code, output), (other_code, other) = run(*two_machines(port, "--config-file", config(), "--num-gpus", "2"))
    assert (code, other_code) == (0, 0)
    assert f"Waiting for 2 machines at tcp://127.0.0.1:{port}" in output
    assert {"rank 0 local 0 of 4: 6.0", "rank 1 local 1 of 4: 6.0"} <= set(output.splitlines())
    assert sorted(other.splitlines())[1:] == ["rank 2 local 0 of 4: 6.0", "rank 3 local 1 of 4: 6.0"]


def test_tasks_of_slurm(run, config):
    argv = ["--config-file", config()]
    (code, output), (other_code, other) = run(argv, argv, environ=[slurm(0), slurm(1)])
    assert (code, other_code) == (0, 0)
    assert output.splitlines()[-1] == "rank 0 local 0 of 2: 1.0"
    assert other == "rank 1 local 0 of 2: 1.0\n"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("case", "message", "traceback"),
    [
        ("raises", "failed: ValueError: nine is odd", True),
        ("killed", "was killed by SIGKILL: the system may have been out of memory (dmesg says so)", False),
        ("exits", "is gone: it was killed, or has ended without a word", False),
    ],
)
def test_a_rank_that_fails_ends_the_job(run, config, case, message, traceback, rank):
    began = time.monotonic()
    [(code, output)] = run(["--config-file", config(), "--num-gpus", "2", "--case", case, "--rank", str(rank)])
    assert time.monotonic() - began < 10
    assert code == 1
    if case == "exits" and rank == 0:
        message = "rank 0 is gone: it was killed, or its machine is off"
    else:
        assert f"error: rank {rank} of 2 (process " in output
    assert output.count(message) == 1
    assert output.count("Traceback") == traceback


@pytest.mark.parametrize("rank", [0, 1])
def test_workers_of_a_killed_rank_do_not_keep_the_others(run, config, rank):
    """They have the rank's open files, and notice after 5 s that it is gone."""
    began = time.monotonic()
    argv = ["--config-file", config(), "--num-gpus", "2", "--case", "killed beside its workers", "--rank", str(rank)]
    [(code, output)] = run(argv)
    assert time.monotonic() - began < 4
    assert code == 1
    assert f"error: rank {rank} of 2 (process " in output


@pytest.mark.parametrize("case", ["complains", "all complain"])
def test_user_errors_are_said_once(run, config, case):
    [(code, output)] = run(["--config-file", config(), "--num-gpus", "3", "--case", case])
    assert code == 1
    assert [line for line in output.splitlines()[1:] if not line.startswith("rank ")] == ["error: x=1: use 2"]


@pytest.mark.parametrize(
    ("case", "message"),
    [("raises", "failed: ValueError: nine is odd"), ("killed", "is gone: it was killed, or has ended without a word")],
)
def test_the_other_machine_ends_and_says_why(run, config, port, case, message):
    began = time.monotonic()
    argv = ["--config-file", config(), "--num-gpus", "2", "--case", case, "--rank", "3"]
    (code, output), (other_code, other) = run(*two_machines(port, *argv))
    assert time.monotonic() - began < 10
    assert (code, other_code) == (1, 1)
    for text in (output, other):
        assert len([line for line in text.splitlines() if "rank 3 of 4 (process " in line and message in line]) == 1
    assert ("Traceback" in output, "Traceback" in other) == (False, case == "raises")


def test_a_task_of_slurm_that_is_killed_ends_the_other(run, config):
    argv = ["--config-file", config(), "--case", "killed"]
    (code, output), (other_code, _) = run(argv, argv, environ=[slurm(0), slurm(1)])
    assert (code, other_code) == (1, -signal.SIGKILL)
    assert "is gone: it was killed, or has ended without a word" in output


def test_an_exchange_that_one_does_not_come_to(run, config):
    [(code, output)] = run(["--config-file", config(), "--num-gpus", "2", "--case", "hangs", "train.dist_timeout=2"])
    assert code == 1
    assert "error: rank 0 of 2 (process " in output
    assert "A process is late, or hangs: train.dist_timeout is how long an exchange waits" in output


def test_machines_that_do_not_come(run, config, port):
    only_first, only_second = two_machines(port, "--config-file", config(), "train.dist_timeout=1")
    [(code, output)] = run(only_first)
    assert code == 1
    assert (
        "error: rank 1 (machine 1) did not come within 1 s (train.dist_timeout): the command must be started on all 2 "
        "machines" in output
    )
    [(code, output)] = run(only_second)
    assert code == 1
    assert f"error: rank 1 does not reach machine 0 at tcp://127.0.0.1:{port}: " in output


def test_machines_of_one_number(run, config, port):
    argv = ["--config-file", config(), "--num-machines", "3", "--dist-url", f"tcp://127.0.0.1:{port}"]
    (_, first), (_, one), (_, other) = run(
        *([*argv, "--machine-rank", rank, "train.dist_timeout=3"] for rank in ("0", "1", "1"))
    )
    assert "rank 1 has come twice: every machine needs a --machine-rank of its own, 0 to 2" in one + other
    assert "error: rank 2 (machine 2) did not come within 3 s" in first


def test_machines_of_different_sizes(run, config, port):
    first, second = two_machines(port, "--config-file", config())
    (code, output), (other_code, other) = run(
        [*first, "--num-gpus", "2", "train.dist_timeout=2"], [*second, "train.dist_timeout=2"]
    )
    assert (code, other_code) == (1, 1)
    assert "error: this machine was started for " in output + other
    assert "--num-machines and --num-gpus must be the same on all machines" in output + other


def test_a_port_that_is_taken(run, config, port):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        [(code, output)] = run(two_machines(port, "--config-file", config())[0])
    assert code == 1
    assert f"error: machine 0 cannot listen at tcp://127.0.0.1:{port}: " in output
    assert "choose another port in --dist-url, on all machines" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_launcher_that_is_ended(tmp_path, config, number):
    argv = ["--config-file", config(), "--num-gpus", "2", "--case", "hangs"]
    commands = Commands(tmp_path, [(argv, {})])
    deadline = time.monotonic() + 15
    while commands.outputs[0].read_text().count("rank ") < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    launcher = commands.processes[0].pid
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    assert len(children) == 2
    os.kill(launcher, number)
    [(code, _)] = commands.wait()
    assert code == (130 if number == signal.SIGINT else -number)
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


@pytest.fixture
def torchrun(config):
    def run(case: str, *options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options),
                *(str(SCRIPT), "--config-file", config(), "--case", case),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    return run


def test_torchrun_knows_which_rank_failed_and_why(torchrun):
    done = torchrun("raises")
    assert done.returncode == 1
    assert {"rank 0 local 0 of 2: 1.0", "rank 1 local 1 of 2: 1.0"} <= set(done.stdout.splitlines())
    assert done.stderr.count("failed: ValueError: nine is odd") == 1
    summary = done.stderr[done.stderr.index("Root Cause") :]
    assert "rank      : 1 (local_rank: 1)" in summary
    assert "ValueError: nine is odd" in summary


def test_torchrun_starts_all_again_after_one_was_killed(torchrun):
    done = torchrun("killed", "--max-restarts=1")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == 2 * ["rank 0 local 0 of 2: 1.0"] + 2 * ["rank 1 local 1 of 2: 1.0"]
    lines = done.stderr.splitlines()
    assert [line for line in lines if "error: rank 1 of 2 (process " in line and "is gone: it was killed" in line]
