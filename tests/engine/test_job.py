"""Which process of which job a command is, by its arguments and its environment."""

from __future__ import annotations

import pytest

from elsa_det.d2 import default_argument_parser
from elsa_det.engine.job import LAUNCHER, SLURM, TORCHRUN, Job, first_host, read_job
from elsa_det.errors import UserError

TORCHRUN_ENV = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node3",
    "MASTER_PORT": "29500",
}
SLURM_ENV = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "5",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
}
TWO_MACHINES = ("--num-machines", "2", "--machine-rank", "1", "--dist-url", "tcp://10.1.2.3:29500")


def read(*argv: str, environ: dict[str, str] | None = None, **changes: str) -> Job:
    return read_job(default_argument_parser().parse_args(list(argv)), {**(environ or {}), **changes})


def test_one_process():
    assert read() == Job(LAUNCHER)
    assert read().world_size == 1


def test_launcher():
    job = read("--num-gpus", "4")
    assert (job.world_size, job.local_rank, job.address) == (4, None, "tcp://127.0.0.1:0")
    assert read("--num-gpus", "4", "--dist-url", "auto") == job


def test_launchers_of_several_machines():
    job = read("--num-gpus", "4", *TWO_MACHINES)
    assert job == Job(LAUNCHER, machines=2, processes=4, machine=1, host="10.1.2.3", port=29500)
    assert (job.world_size, [job.rank_of(i) for i in range(4)]) == (8, [4, 5, 6, 7])
    ipv6 = read("--num-machines", "2", "--dist-url", "tcp://[fd00::1]:29500")
    assert (ipv6.host, ipv6.address) == ("fd00::1", "tcp://[fd00::1]:29500")


def test_torchrun():
    job = read(environ=TORCHRUN_ENV)
    assert job == Job(TORCHRUN, machines=2, processes=4, machine=1, local_rank=1, host="node3", port=29500)
    assert (job.rank, job.world_size) == (5, 8)


def test_slurm():
    job = read(environ=SLURM_ENV)
    assert job == Job(SLURM, machines=2, processes=4, machine=1, local_rank=1, host="gpu07", port=job.port)
    assert (job.rank, job.world_size) == (5, 8)
    assert 10000 <= job.port < 30000
    assert read(environ=SLURM_ENV, SLURM_STEP_ID="4").port != job.port
    chosen = read(environ=SLURM_ENV, MASTER_ADDR="10.0.0.1", MASTER_PORT="1234")
    assert (chosen.host, chosen.port) == ("10.0.0.1", 1234)


def test_torchrun_comes_before_slurm():
    assert read(environ={**SLURM_ENV, **TORCHRUN_ENV}).started_by == TORCHRUN


def test_launchers_started_by_srun():
    """One task a machine, which starts the processes itself."""
    job = read("--num-gpus", "4", *TWO_MACHINES, environ=SLURM_ENV, SLURM_STEP_NUM_TASKS="2")
    assert (job.started_by, job.world_size) == (LAUNCHER, 8)


@pytest.mark.parametrize(
    "environ",
    [{"SLURM_JOB_ID": "17", "SLURM_NTASKS": "8"}, {**SLURM_ENV, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}],
)
def test_an_allocation_without_srun_is_one_process(environ):
    """A batch script outside srun, and a shell that srun started."""
    assert read(environ=environ) == Job(LAUNCHER)


def test_an_unused_allocation_is_told(caplog):
    read(environ={"SLURM_JOB_ID": "17", "SLURM_NTASKS": "8"})
    assert "One process alone, in a SLURM allocation of 8 tasks: srun in front would use them" in caplog.text


@pytest.mark.parametrize(
    ("names", "host"),
    [
        ("login", "login"),
        ("a,b", "a"),
        ("gpu[07-09,12],login", "gpu07"),
        ("gpu[3,5]", "gpu3"),
        ("r1n[2-3].hpc,x", "r1n2.hpc"),
        ("node-1-2", "node-1-2"),
    ],
)
def test_first_host(names, host):
    assert first_host(names) == host


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--num-gpus", "0"], {}, "--num-gpus 0: it is the number of processes of this machine, at least 1"),
        (["--num-machines", "0"], {}, "--num-machines 0 --machine-rank 0: ranks are 0 to one less"),
        (["--num-machines", "2", "--machine-rank", "2"], {}, "--num-machines 2 --machine-rank 2: ranks are"),
        (["--num-machines", "2"], {}, "--num-machines 2 needs one address for all machines: --dist-url tcp://HOST"),
        (["--dist-url", "file:///x"], {}, "--dist-url file:///x must be tcp://HOST:PORT"),
        (["--dist-url", "tcp://x"], {}, "--dist-url tcp://x must be tcp://HOST:PORT"),
        (["--dist-url", "tcp://x:99999"], {}, "--dist-url tcp://x:99999 must be tcp://HOST:PORT"),
        (["--num-gpus", "2"], TORCHRUN_ENV, "--num-gpus 2: torchrun has started the processes (WORLD_SIZE=8)"),
        (
            list(TWO_MACHINES),
            TORCHRUN_ENV,
            "--num-machines 2 --machine-rank 1 --dist-url tcp://10.1.2.3:29500: torchrun has started",
        ),
        (["--num-gpus", "2"], SLURM_ENV, "--num-gpus 2: srun has started the processes (8 tasks)"),
        ([], {"RANK": "1", "WORLD_SIZE": "2"}, "but not LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ([], {**TORCHRUN_ENV, "RANK": "x"}, "RANK=x in the environment must be a whole number"),
        ([], {**TORCHRUN_ENV, "WORLD_SIZE": "7"}, "RANK=5, WORLD_SIZE=7, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4 do not fit"),
        ([], {**SLURM_ENV, "SLURM_STEP_NUM_TASKS": "7"}, "task 5 of 7 is number 1 of node 1 of 2"),
        ([], {**SLURM_ENV, "SLURM_NODEID": "0"}, "srun --ntasks-per-node N --distribution block"),
        ([], {**SLURM_ENV, "SLURM_STEP_NODELIST": ""}, "names no host: set MASTER_ADDR"),
    ],
)
def test_what_cannot_be(argv, environ, message):
    with pytest.raises(UserError) as raised:
        read(*argv, environ=environ)
    assert message in str(raised.value)
