"""What training and evaluation commands have in common: options, logs, seeds, writers."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import LazyConfig
from ..utils import comm
from ..utils.collect_env import collect_env_info
from ..utils.env import seed_all_rng
from ..utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from ..utils.file_io import PathManager
from ..utils.logger import setup_logger

__all__ = ["create_ddp_model", "default_argument_parser", "default_setup", "default_writers"]


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap the model in DistributedDataParallel; with a single process it comes back as it is.

    Args:
        model: On its device already.
        fp16_compression: Exchange gradients in half precision.
        kwargs: For :class:`DistributedDataParallel`. ``device_ids`` defaults to this worker's GPU, or to none for a
            model on the CPU.
    """
    if comm.get_world_size() == 1:
        return model
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    kwargs.setdefault("device_ids", None if on_cpu else [comm.get_local_rank()])
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        ddp.register_comm_hook(state=None, hook=fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser with the options every command has.

    Args:
        epilog: Text under the help, in place of the usual examples.
    """
    command = sys.argv[0]
    examples = f"""
Examples:

One machine, 8 GPUs:
    $ {command} --config-file cfg.py --num-gpus 8

With changes to the config:
    $ {command} --config-file cfg.py train.init_checkpoint=/path/to/weights.pth optimizer.lr=0.001

Two machines:
    (machine 0)$ {command} --config-file cfg.py --num-machines 2 --machine-rank 0 --dist-url <URL>
    (machine 1)$ {command} --config-file cfg.py --num-machines 2 --machine-rank 1 --dist-url <URL>
"""
    parser = argparse.ArgumentParser(epilog=epilog or examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in the output directory, if any"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{_port_of_this_user()}",
        help="where the processes of a job meet: init_method of torch.distributed.init_process_group",
    )
    parser.add_argument(
        "opts",
        default=None,
        nargs=argparse.REMAINDER,
        help='changes to the config, "path.key=value" each; they come last on the command line',
    )
    return parser


def _port_of_this_user() -> int:
    """The same port each time, so that processes left over from an earlier run are noticed by its being taken."""
    user = 1 if sys.platform == "win32" else os.getuid()
    return 2**15 + 2**14 + hash(user) % 2**14


def default_setup(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Set up logging, write the environment, the arguments and the config to it, seed the random generators.

    Used of the config: ``train.output_dir`` (with a copy of the config as ``config.yaml``), ``train.seed`` (each
    rank adds its number; negative means at random), ``train.cudnn_benchmark``, ``train.float32_precision``.

    Args:
        cfg: The full config.
        args: The parsed command line; ``config_file`` and ``eval_only`` are looked at if present.
    """
    rank = comm.get_rank()
    output_dir = _first_of(cfg, "OUTPUT_DIR", "output_dir", "train.output_dir")
    saves = bool(output_dir) and comm.is_main_process()
    if saves:
        PathManager.mkdirs(output_dir)

    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)
    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as file:
            logger.info("Contents of args.config_file=%s:\n%s", config_file, file.read())
    if saves:
        path = os.path.join(output_dir, "config.yaml")
        LazyConfig.save(cfg, path)
        logger.info("Full config saved to %s", path)

    seed = _first_of(cfg, "SEED", "train.seed", default=-1)
    seed_all_rng(None if seed < 0 else seed + rank)  # ranks differ, runs do not

    if not getattr(args, "eval_only", False):
        # Searching for the fastest convolution costs more than it saves on the few images of an evaluation.
        torch.backends.cudnn.benchmark = _first_of(cfg, "CUDNN_BENCHMARK", "train.cudnn_benchmark", default=False)
    precision = _first_of(cfg, "FLOAT32_PRECISION", "train.float32_precision", default="")
    if precision:
        _set_float32_precision(precision, logger)


def _first_of(cfg: DictConfig, *keys: str, default: Any = None) -> Any:
    """Value of the first of these dotted keys that the config has."""
    missing = object()
    for key in keys:
        value = OmegaConf.select(cfg, key, default=missing)
        if value is not missing:
            return value
    return default


def _set_float32_precision(precision: str, logger: logging.Logger) -> None:
    """Let float32 matrix products and convolutions run at ``precision`` (``highest``, ``high`` or ``medium``)."""
    if torch.cuda.is_available():  # no other device knows TF32
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"
    logger.info(
        "float32 precision asked for: %s; matmul precision is %s, TF32 in cuDNN %s",
        precision,
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the log, to ``metrics.json`` and to TensorBoard.

    Args:
        output_dir: Made if it does not exist.
        max_iter: Total number of iterations, for the estimated time of arrival in the log.
    """
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
