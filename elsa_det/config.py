"""Config files: found by name, loaded, overridden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import __version__
from .config_errors import explained
from .config_targets import calls_in, read_yaml_config
from .d2 import PROVIDER_VERSION, LazyConfig
from .errors import UserError
from .nearby import looked_for
from .overrides import apply_overrides

#: the groups of keys without which nothing can be run
_NEEDED = ("model", "dataloader", "train")


def config_root() -> Path:
    """The folder of the configs: installed with the package, or beside it in a source tree."""
    package = Path(__file__).parent
    for root in (package / "configs", package.parent / "configs"):
        if (root / "common" / "train.py").is_file():
            return root
    raise FileNotFoundError(f"the configs of elsa_det were found neither in {package} nor in {package.parent}")


def get_config(name: str, overrides: Sequence[str] = ()) -> Any:
    """A config of the toolkit by name, such as ``get_config("coco/elsa_t_mrcnn_1x.py")``.

    Args:
        name: path below the config folder; the ending may be left out.
        overrides: as on the command line, ``["train.max_iter=10"]``.

    Returns:
        An omegaconf ``DictConfig``.

    Raises:
        FileNotFoundError: there is no config of that name; the message lists those of its folder.
    """
    root = config_root()
    path = root / (name if name.endswith(".py") else f"{name}.py")
    if not path.is_file():
        near = path.parent if path.parent.is_dir() else root
        known = sorted(str(p.relative_to(root)) for p in near.rglob("*.py") if "common" not in p.parts)
        raise FileNotFoundError(f"no config {name!r} below {root}. There are: {', '.join(known)}")
    return load_config(path, overrides)


def find_config(path: str | Path) -> Path:
    """What a command's ``--config-file`` means: the file itself, else the installed config of that name.

    Args:
        path: a file, or the name of one of the toolkit's configs with or without ``configs/`` before it, such as
            ``configs/coco/elsa_t_mrcnn_1x.py`` in any folder.

    Raises:
        FileNotFoundError: there is neither.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_absolute():
        parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
        installed = config_root().joinpath(*parts)
        if installed.is_file():
            return installed
    raise FileNotFoundError(f"config file {path} does not exist {looked_for(path)}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Load a LazyConfig file, apply overrides, and settle the device.

    A ``.py`` file is a program, and runs. A ``.yaml`` file is data: it, and overrides, may call what
    :mod:`elsa_det.d2lite.config.trusted` lists, and what the user adds by ``ELSA_DET_TRUST``.

    Args:
        path: see :func:`find_config`.
        overrides: as on the command line, ``["train.max_iter=10"]``.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file cannot be loaded, an override does not fit the config, CUDA is asked for and not there, the
            file's name ends in something else, or a file of data cannot be read or calls what is not allowed.
    """
    path = find_config(path)
    suffix = path.suffix
    if suffix in (".yaml", ".yml"):
        with explained(path):
            cfg, known = read_yaml_config(path), frozenset[str]()
    elif suffix == ".py":
        with explained(path):
            cfg = LazyConfig.load(str(path))
        known = calls_in(cfg) if overrides else frozenset()
    else:
        raise UserError(f"config file {path} has to end in .py, .yaml or .yml")
    cfg = apply_overrides(cfg, overrides, known)
    try:
        if "train" in cfg:
            settle_device(cfg.train)
    except OmegaConfBaseException as error:
        raise UserError(f"config file {path}: {str(error).splitlines()[0]}") from error
    return cfg


def check_complete(cfg: Any) -> None:
    """Raise if the config lacks what every run needs, or leaves values open that the user has to give.

    Raises:
        UserError: naming the keys.
    """
    lacking = [key for key in _NEEDED if key not in cfg]
    if lacking:
        raise UserError(
            f"the config has no {', '.join(lacking)}{'; it is empty' if not cfg else f', only {_listed(cfg)}'}. A "
            f"config that is trained or evaluated has {', '.join(_NEEDED)}: start from one of those in {config_root()}"
        )

    def find(node: Any, path: str) -> list[str]:
        if isinstance(node, dict):
            return [key for name, value in node.items() for key in find(value, f"{path}.{name}" if path else str(name))]
        return [path] if node == "???" else []

    # missing_keys of omegaconf stumbles over interpolations of missing values
    open_keys = find(OmegaConf.to_container(cfg, resolve=False), "")
    if open_keys:
        raise UserError(f"the config leaves open: {', '.join(open_keys)}. Give them as key=value on the command line.")


def _listed(cfg: Any) -> str:
    names = sorted(str(key) for key in cfg)
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def stamp_config(path: str | Path) -> None:
    """Put a first line into a saved config that says which versions wrote it; d2lite writes one of its own."""
    path = Path(path)
    text = path.read_text()
    if not text.startswith("# Saved by"):
        path.write_text(f"# Saved by elsa_det {__version__} on Detectron2 {PROVIDER_VERSION}.\n{text}")


def settle_device(train: Any) -> None:
    """Resolve ``train.device == "auto"`` to CUDA when there, else the CPU, and turn mixed precision off on the CPU.

    Raises:
        UserError: CUDA is asked for and not there, or ``train`` or ``train.amp`` holds no keys.
    """
    for key, group in (("train", train), ("train.amp", train.get("amp") if isinstance(train, Mapping) else None)):
        if not isinstance(group, Mapping) and not (group is None and key == "train.amp"):
            raise UserError(f"{key} is {str(group)[:80]!r}, and must be a group of keys")
    asked = train.get("device", "auto")
    if asked == "auto":
        train.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif str(asked).startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"train.device={asked}, but torch {torch.__version__} sees no CUDA device: use cpu or auto")
    amp = train.get("amp")
    if str(train.device) == "cpu" and amp is not None and amp.get("enabled"):
        amp.enabled = False
        train.amp_off_on_cpu = True


def describe_device(train: Any) -> str:
    """One line for the log: the device and whether mixed precision is on."""
    where = str(train.device)
    if where.startswith("cuda"):
        where += f" ({torch.cuda.get_device_name()})"
    if train.get("amp_off_on_cpu"):
        return f"Device: {where}; mixed precision is for CUDA and was turned off"
    return f"Device: {where}; mixed precision {'on' if train.amp.enabled else 'off'}"
