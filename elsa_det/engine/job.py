"""Which processes make up a job, and which of them this one is: by the command line, torchrun, or SLURM."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..d2 import default_argument_parser
from ..errors import UserError

logger = logging.getLogger(__name__)

LAUNCHER, TORCHRUN, SLURM = "--num-gpus", "torchrun", "SLURM"
_TORCHRUN_SETS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FREE_PORT = 0


@dataclass(frozen=True)
class Job:
    """The processes of a job, from the view of one of its machines or processes.

    Args:
        started_by: ``LAUNCHER``, ``TORCHRUN`` or ``SLURM``.
        machines: in the job.
        processes: on each machine.
        machine: number of this machine, from 0.
        local_rank: number of this process on its machine; None where the processes are still to be started.
        host: of machine 0, where all meet.
        port: there; 0 lets a free one be found.
    """

    started_by: str
    machines: int = 1
    processes: int = 1
    machine: int = 0
    local_rank: int | None = None
    host: str = "127.0.0.1"
    port: int = _FREE_PORT

    @property
    def world_size(self) -> int:
        """Processes of the job."""
        return self.machines * self.processes

    def rank_of(self, local_rank: int) -> int:
        """Number of a process of this machine among all of the job."""
        return self.machine * self.processes + local_rank

    @property
    def rank(self) -> int:
        """Number of this process among all of the job."""
        assert self.local_rank is not None, "the processes are not started yet"
        return self.rank_of(self.local_rank)

    @property
    def address(self) -> str:
        """Where the processes meet, ``tcp://host:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


def read_job(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Job:
    """The job that a command with these arguments, in this environment, is part of.

    torchrun comes before SLURM (``srun torchrun …`` starts one torchrun a machine), and both before the launcher.

    Raises:
        UserError: the arguments contradict each other or the environment, or something is missing.
    """
    if "TORCHELASTIC_RUN_ID" in environ or ("RANK" in environ and environ.get("WORLD_SIZE", "1") != "1"):
        return _from_torchrun(args, environ)
    tasks = _slurm_tasks(environ)
    launchers = args.num_machines == tasks  # srun starts one launcher a machine
    if "SLURM_STEP_ID" in environ and tasks > 1 and not launchers:
        return _from_slurm(args, environ)
    job = _from_arguments(args)
    if job.world_size == 1 and tasks > 1:
        logger.warning("One process alone, in a SLURM allocation of %d tasks: srun in front would use them", tasks)
    return job


def _given(args: argparse.Namespace) -> dict[str, object]:
    """The options of the launcher that are not as they are without being given."""
    parser = default_argument_parser()
    names = ("num_gpus", "num_machines", "machine_rank", "dist_url")
    return {n: getattr(args, n) for n in names if getattr(args, n, None) not in (None, parser.get_default(n))}


def _refuse_options(args: argparse.Namespace, started_by: str, how_many: str, remedy: str) -> None:
    given = _given(args)
    if given:
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
        raise UserError(f"{options}: {started_by} has started the processes ({how_many}). Leave it out; {remedy}")


def _from_torchrun(args: argparse.Namespace, environ: Mapping[str, str]) -> Job:
    missing = [name for name in _TORCHRUN_SETS if not environ.get(name)]
    if missing:
        raise UserError(
            f"RANK={environ.get('RANK', '')} and WORLD_SIZE={environ.get('WORLD_SIZE', '')} stand in the environment, "
            f"but not {', '.join(missing)}: start with torchrun, which sets them all, or unset RANK and WORLD_SIZE"
        )
    _refuse_options(
        args,
        "torchrun",
        f"WORLD_SIZE={environ['WORLD_SIZE']}",
        "--nproc_per_node, --nnodes and --rdzv-endpoint of torchrun say how many and where",
    )
    world, rank = _number(environ, "WORLD_SIZE"), _number(environ, "RANK")
    local_world, local_rank = _number(environ, "LOCAL_WORLD_SIZE"), _number(environ, "LOCAL_RANK")
    if not 0 <= local_rank < local_world or world % local_world or rank % local_world != local_rank or rank >= world:
        raise UserError(
            f"RANK={rank}, WORLD_SIZE={world}, LOCAL_RANK={local_rank}, LOCAL_WORLD_SIZE={local_world} do not fit "
            "together: every machine needs the same number of processes, numbered machine by machine"
        )
    return Job(
        TORCHRUN,
        machines=world // local_world,
        processes=local_world,
        machine=rank // local_world,
        local_rank=local_rank,
        host=environ["MASTER_ADDR"],
        port=_number(environ, "MASTER_PORT"),
    )


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    return next((_number(environ, name) for name in names if environ.get(name)), 1)


def _from_slurm(args: argparse.Namespace, environ: Mapping[str, str]) -> Job:
    tasks = _slurm_tasks(environ)
    _refuse_options(args, "srun", f"{tasks} tasks", "--nodes and --ntasks-per-node of srun say how many")
    names = ("SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    nodes = next((_number(environ, name) for name in names if environ.get(name)), 1)
    rank, local_rank, node = (_number(environ, f"SLURM_{name}") for name in ("PROCID", "LOCALID", "NODEID"))
    if tasks % nodes or rank != node * (tasks // nodes) + local_rank:
        raise UserError(
            f"task {rank} of {tasks} is number {local_rank} of node {node} of {nodes}: every node needs the same "
            "number of tasks, numbered node by node. Start with srun --ntasks-per-node N --distribution block"
        )
    node_list = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    host = environ.get("MASTER_ADDR") or first_host(node_list)
    job_and_step = _number(environ, "SLURM_JOB_ID") * 7 + _number(environ, "SLURM_STEP_ID")
    port = 10000 + job_and_step % 20000  # below the ports of outgoing connections
    if environ.get("MASTER_PORT"):
        port = _number(environ, "MASTER_PORT")
    return Job(
        SLURM,
        machines=nodes,
        processes=tasks // nodes,
        machine=node,
        local_rank=local_rank,
        host=host,
        port=port,
    )


def first_host(node_list: str) -> str:
    """The first host of SLURM's short form: ``"gpu[07-09,12],login"`` gives ``"gpu07"``.

    Raises:
        UserError: there is none.
    """
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", node_list)
    if not found:
        raise UserError(f"SLURM_JOB_NODELIST={node_list!r} names no host: set MASTER_ADDR to that of the first task")
    return "".join(part or "" for part in found.groups())


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        raise UserError(f"{name}={environ.get(name, '')} in the environment must be a whole number") from None


def _from_arguments(args: argparse.Namespace) -> Job:
    processes, machines, machine = args.num_gpus, args.num_machines, args.machine_rank
    if processes < 1:
        raise UserError(
            f"--num-gpus {processes}: it is the number of processes of this machine, at least 1. To train on the "
            "CPU leave it out, and set train.device=cpu"
        )
    if machines < 1 or not 0 <= machine < machines:
        raise UserError(
            f"--num-machines {machines} --machine-rank {machine}: ranks are 0 to one less than the number of machines, "
            "which is at least 1"
        )
    url = _given(args).get("dist_url", "auto")
    if machines > 1 and url == "auto":
        raise UserError(
            f"--num-machines {machines} needs one address for all machines: --dist-url tcp://HOST:PORT, "
            "HOST being machine 0 and PORT a free port there"
        )
    if url == "auto":
        return Job(LAUNCHER, processes=processes)
    host, port = _host_and_port(str(url))
    return Job(LAUNCHER, machines, processes, machine, host=host, port=port)


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    else:
        if parts.scheme != "tcp":
            host = None
    if host is None or not port:
        raise UserError(f"--dist-url {url} must be tcp://HOST:PORT, such as tcp://10.1.2.3:29500, or auto")
    return host, port
