"""COCO-format data by registered name, or by its json and image folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..d2 import DatasetCatalog, MetadataCatalog, load_coco_json
from ..errors import UserError
from ..nearby import looked_for
from .paths import check_inside


def registered_coco(name: str | None, json_file: str | None = None, image_root: str | None = None) -> str:
    """The name under which a dataset is registered; own data is registered on the way, under the path of its json.

    Args:
        name: a registered dataset, used when ``json_file`` is None.
        json_file: COCO-format annotations of own data.
        image_root: folder that the ``file_name`` entries of the json start from.

    Raises:
        UserError: ``name`` is not registered; only one of ``json_file`` and ``image_root`` is given; or the same json
            was registered with another image folder.
        FileNotFoundError: the json or the folder does not exist.
    """
    return registered(name, json_file, image_root, _register)


def _register(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """As ``register_coco_instances`` does it, but what is loaded is checked."""
    DatasetCatalog.register(name, partial(load_own_coco, json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def load_own_coco(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    """``load_coco_json`` of data whose files stay below ``image_root``.

    Raises:
        FileNotFoundError: the json does not exist.
        UserError: it cannot be read, or names a file that is not below ``image_root``.
    """
    try:
        entries = load_coco_json(json_file, image_root, name)
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RecursionError,
            MemoryError) as error:  # fmt: skip
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{json_file} cannot be read as COCO-format data ({type(error).__name__}: {error}). See all faults with: "
            f"tools/check_data.py --json {json_file} --images {image_root}"
        ) from error
    check_inside((entry["file_name"] for entry in entries), image_root, json_file)
    return entries


def registered(
    name: str | None,
    json_file: str | None,
    image_root: str | None,
    register: Callable[[str, dict[str, Any], str, str], Any],
) -> str:
    """:func:`registered_coco` for another format: ``register(name, metadata, json_file, image_root)`` does it."""
    if (json_file is None) != (image_root is None):
        raise UserError(f"own data needs both: got json_file={json_file!r}, image_root={image_root!r}")
    if json_file is None or image_root is None:
        if name is None:
            raise UserError(
                "no data is named: set dataset.train.json_file and dataset.train.image_root, and dataset.test.*"
            )
        if name not in DatasetCatalog.list():
            raise UserError(
                f"dataset {name!r} is not registered. Known: {', '.join(sorted(DatasetCatalog.list()))}. "
                "For own data set json_file and image_root beside the name."
            )
        return name
    if not isinstance(json_file, (str, Path)) or not isinstance(image_root, (str, Path)):
        raise UserError(
            f"json_file={json_file} and image_root={image_root} must be one file and one folder here; several go "
            "together with the configs of own_data"
        )
    if not Path(json_file).is_file():
        raise FileNotFoundError(f"annotations json_file={json_file} does not exist {looked_for(json_file)}")
    if not Path(image_root).is_dir():
        raise FileNotFoundError(f"image_root={image_root} is not a folder (looked for {Path(image_root).absolute()})")
    own_name = str(json_file)
    if own_name in DatasetCatalog.list():
        known_root = MetadataCatalog.get(own_name).image_root
        if known_root != image_root:
            raise UserError(f"{json_file} is already registered with image_root={known_root}, not {image_root}")
    else:
        register(own_name, {}, str(json_file), str(image_root))
    return own_name
