"""Processes: ranks and exchange, launching, seeds, logs, paths, the report of the environment."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import logging
import os
import random
import re
from unittest import mock

import numpy as np
import torch
import torch.multiprocessing
from fidelity.harness import case, error_of, fill, folder, generator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from elsa_det import d2

_RUNS = itertools.count()


def _kind(value) -> str:
    """A value with the types of its containers: ``list[int]`` is not ``tuple[int]``."""
    inner = f"[{', '.join(_kind(each) for each in value)}]" if isinstance(value, (list, tuple)) else ""
    return type(value).__name__ + inner


def _of_one_rank(path: str) -> None:
    """What every rank sees; written to a file of its own."""
    comm, rank = d2.comm, d2.comm.get_rank()
    np.random.seed(rank)
    group = comm.get_local_process_group()
    gathered = {
        "all": comm.all_gather({"rank": rank, "pair": (rank, [rank])}),
        "all_in_group": comm.all_gather(rank, group=group),
        "to_0": comm.gather((rank, "x")),
        "to_1": comm.gather([rank], dst=1),
        "large": [len(text) for text in comm.all_gather("x" * (1000 * rank + 1))],
    }
    scalars = {"b": torch.tensor(1.0 + rank), "a": torch.tensor(10.0 * rank)}
    out = {
        "where": [comm.get_world_size(), rank, comm.get_local_rank(), comm.get_local_size(), comm.is_main_process()],
        "gathered": gathered,
        "kinds": {name: _kind(value) for name, value in gathered.items()},
        "seed": int(comm.shared_random_seed()),
    }
    mean, total = comm.reduce_dict(dict(scalars)), comm.reduce_dict(dict(scalars), average=False)
    if rank == 0:  # elsewhere it is not defined
        out["reduced"] = {"mean": _numbers(mean), "sum": _numbers(total), "order": list(mean)}
    wrapped = d2.create_ddp_model(nn.Linear(2, 1), device_ids=None, broadcast_buffers=False)
    squeezed = d2.create_ddp_model(nn.Linear(2, 1), device_ids=None, fp16_compression=True)
    out["ddp"] = [type(wrapped) is DistributedDataParallel, wrapped.broadcast_buffers, type(squeezed.module).__name__]
    out["sampler"] = list(d2.InferenceSampler(5))
    for name, images in (("naiveSyncBN", 2), ("naiveSyncBN_N", 3 * rank)):  # on rank 0 there are none
        norm, x = fill(d2.get_norm(name, 3), 1.0).train(), torch.randn(images, 3, 2, 4, generator=generator(rank))
        with torch.no_grad():
            out[name] = [norm(x).flatten().tolist(), norm.running_mean.tolist(), norm.running_var.tolist()]
    with d2.EventStorage(4) as storage:
        losses = {"loss_a": torch.tensor(1.0 + rank), "loss_b": torch.tensor(3.0 * rank)}
        d2.SimpleTrainer.write_metrics(losses, 0.25 * rank, 4, "pre_")
        out["metrics"] = {name: list(pair) for name, pair in storage.latest().items()}
    comm.synchronize()
    with open(f"{path}/{rank}.json", "w") as file:
        json.dump(out, file)


def _numbers(scalars: dict) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(scalars.items())}


@case(
    "comm",
    "launch",
    "create_ddp_model",
    "SimpleTrainer",
    "get_norm",
    what="two processes: ranks, gathered objects and their types, reduced scalars, wrapped models, metrics, norms",
    rtol=1e-5,
    atol=1e-6,
)
def two_processes():
    start = functools.partial(torch.multiprocessing.start_processes, start_method="fork")  # importing anew is slow
    with (
        folder() as at,
        mock.patch("torch.multiprocessing.start_processes", start),
        mock.patch("torch.cuda.is_available", return_value=False),
    ):
        d2.launch(_of_one_rank, 2, dist_url="auto", args=(str(at),))
        out = {str(rank): json.loads((at / f"{rank}.json").read_text()) for rank in range(2)}
    for results in out.values():
        for name in ("naiveSyncBN", "naiveSyncBN_N"):
            results[name] = [torch.tensor(values) for values in results[name]]
    return out


@case(
    "comm",
    "launch",
    "create_ddp_model",
    what="one process: the same calls without a group; the launcher's call, defaults and errors",
)
def one_process():
    comm, called, model = d2.comm, [], nn.Linear(1, 1)
    d2.launch(lambda *arguments: called.append(arguments), 1, args=(3, "x"))
    np.random.seed(4)
    scalars = {"b": torch.tensor(2.0), "a": torch.tensor(1.0)}
    gathered = [comm.all_gather((1, 2)), comm.gather([3]), comm.gather("x", dst=0)]
    signature = inspect.signature(d2.launch)
    return {
        "called": called,
        "where": [comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()],
        "main": comm.is_main_process(),
        "gathered": gathered,
        "kinds": [_kind(value) for value in gathered],
        "seed": int(comm.shared_random_seed()),
        "reduced": [comm.reduce_dict(scalars) is scalars, list(scalars)],
        "nothing_to_wait_for": error_of(comm.synchronize),
        "unwrapped": d2.create_ddp_model(model, broadcast_buffers=False) is model,
        "no_group": error_of(comm.get_local_process_group) if comm._LOCAL_PROCESS_GROUP is None else "raises",
        "defaults": {name: str(p.default) for name, p in signature.parameters.items()},
        "error": error_of(lambda: d2.launch(print, 2, num_machines=2, dist_url="auto")),
    }


@case("seed_all_rng", what="the numbers drawn after a seed, in Python, NumPy and torch; without a seed")
def seeds():
    out: dict = {}
    for seed in (0, 7, 2**32 - 1):
        d2.seed_all_rng(seed)
        out[str(seed)] = [
            random.random(),
            float(np.random.rand()),
            int(torch.randint(1000, ())),
            os.environ["PYTHONHASHSEED"],
        ]
    d2.seed_all_rng()
    first = random.random()
    d2.seed_all_rng(None)
    out["differs"] = first != random.random()
    os.environ.pop("PYTHONHASHSEED")
    return out


@case("setup_logger", what="the file and its lines of two ranks, levels, names and abbreviations, called twice")
def logs():
    out: dict = {}
    run = next(_RUNS)  # of one name and the same options the second call gives the first logger
    with folder() as at, mock.patch("sys.stdout"):
        for name, options in {
            "usual": {"output": str(at / "out")},
            "file": {"output": str(at / "to" / "some.txt")},
            "rank": {"output": str(at / "ranks"), "distributed_rank": 2},
            "silent": {},
            "abbreviated": {"output": str(at / "short.txt"), "abbrev_name": "S"},
        }.items():
            logger = d2.setup_logger(name=f"fidelity{run}.{name}", color=name != "silent", **options)
            again = d2.setup_logger(name=f"fidelity{run}.{name}", color=name != "silent", **options)
            logger.info("words %d", 5)
            logging.getLogger(f"fidelity{run}.{name}.inner").warning("more")
            logger.debug("detail")
            handlers = [type(handler).__name__ for handler in logger.handlers]
            out[name] = [again is logger, logger.level, logger.propagate, *handlers]
            for handler in list(logger.handlers):
                handler.flush()
                logger.removeHandler(handler)
        written = sorted(path for path in at.rglob("*") if path.is_file())
        out["files"] = [str(path.relative_to(at)) for path in written]
        out["lines"] = [
            re.sub(r"\d\d/\d\d \d\d:\d\d:\d\d", "TIME", path.read_text()).replace(f"fidelity{run}", "fidelity")
            for path in written
        ]
    return out


@case("PathManager", what="kind of object and the handlers of its prefixes; local files and folders")
def paths():
    manager = d2.PathManager
    with folder() as at:
        manager.mkdirs(str(at / "a" / "b"))
        with manager.open(str(at / "a" / "x.txt"), "w") as file:
            file.write("text")
        here = [
            manager.exists(str(at / "a")),
            manager.isfile(str(at / "a" / "x.txt")),
            sorted(manager.ls(str(at / "a"))),
        ]
        local = manager.get_local_path(str(at / "a" / "x.txt")) == str(at / "a" / "x.txt")
    zoo = manager._PathManager__get_path_handler("detectron2://some/file.pkl")
    asked: list[str] = []
    with mock.patch.object(type(manager), "get_local_path", lambda self, path, *a, **k: asked.append(path) or "local"):
        zoo._get_local_path("detectron2://some/file.pkl")
    return {
        "kind": [type(manager).__name__, type(manager).__module__],
        "here": [*here, local],
        "zoo": [type(zoo).__name__, *asked],
        "web": type(manager._PathManager__get_path_handler("https://host/file")).__name__,
        "own": manager is not __import__("iopath.common.file_io").common.file_io.g_pathmgr,
    }


@case("collect_env_info", what="the rows that both report: which libraries are named, with the same versions")
def environment():
    text = d2.collect_env_info()
    rows = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines() if re.search(r"\S\s{2,}\S", line))
    shared = ("sys.platform", "numpy", "PyTorch", "torchvision", "fvcore", "iopath", "cv2")
    versions = {name: rows[name].split(" ")[0] for name in shared}
    libraries = {"numpy": np, "PyTorch": torch, "torchvision": __import__("torchvision"), "cv2": __import__("cv2")}
    true = {name: versions[name] == module.__version__ for name, module in libraries.items()}
    devices = rows["GPU available"].split(":")[0] == ("Yes" if torch.cuda.is_available() else "No")
    return {"named": sorted(versions), "true": true, "devices": devices, "build": "PyTorch built with" in text}
