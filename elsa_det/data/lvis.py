"""LVIS-format data by registered name, or by its json and image folder."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
from functools import partial
from typing import Any

import numpy as np

from ..d2 import PROVIDER, UPSTREAM, DatasetCatalog, MetadataCatalog, load_lvis_json
from ..errors import UserError
from ..json_files import read_json
from .coco import registered
from .paths import check_inside

# Its requirements name old releases; what it needs is installed with elsa_det.
_INSTALL = "pip install --no-deps --no-build-isolation 'git+https://github.com/lvis-dataset/lvis-api'"


def registered_lvis(name: str | None, json_file: str | None = None, image_root: str | None = None) -> str:
    """The name under which a dataset is registered; own data is registered on the way, under the path of its json.

    Args:
        name: a registered dataset, used when ``json_file`` is None.
        json_file: LVIS-format annotations of own data, with category ids 1 to N.
        image_root: folder that the last two parts of the images' ``coco_url`` start from.

    Raises:
        UserError: ``name`` is not registered; only one of ``json_file`` and ``image_root`` is given; the same json
            was registered with another image folder; or Detectron2 runs without the package ``lvis`` that it needs.
        FileNotFoundError: the json or the folder does not exist.
    """
    if PROVIDER == UPSTREAM:
        _check_lvis_package()
    return registered(name, json_file, image_root, _register)


def _register(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    # Detectron2's register_lvis_instances knows the classes of LVIS itself only, and goes by the dataset's name.
    DatasetCatalog.register(name, partial(_load, json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata)


def _load(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    """The images of own data; the names of the classes go into the metadata."""
    content = read_json(json_file)
    try:
        categories = {category["id"]: category for category in content["categories"]}
        names = [(categories[i].get("synonyms") or [categories[i]["name"]])[0] for i in sorted(categories)]
        unplaced = [image["id"] for image in content["images"] if "coco_url" not in image]
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{json_file} is not in LVIS's format: {type(error).__name__} {error}") from error
    if sorted(categories) != list(range(1, len(categories) + 1)):
        raise UserError(f"{json_file}: LVIS's category ids are 1 to N, but these are {sorted(categories)[:10]} …")
    if unplaced:
        raise UserError(
            f"{json_file}: {len(unplaced)} images, such as {unplaced[0]}, have no 'coco_url', whose last two parts "
            "(folder/file) say where an image lies below image_root"
        )
    MetadataCatalog.get(name).thing_classes = names
    entries = load_lvis_json(json_file, os.path.join(image_root, ""))
    check_inside((entry["file_name"] for entry in entries), image_root, json_file)
    return entries


def _check_lvis_package() -> None:
    """Detectron2 reads and evaluates LVIS with the package ``lvis``, d2lite does without."""
    if importlib.util.find_spec("lvis") is None:
        raise UserError(f"Detectron2 needs the package 'lvis' for LVIS: {_INSTALL}, or set ELSA_DET_D2=lite")
    from lvis import LVISEval

    # Release 0.5.3 fails in its last step, after all predictions are made.
    if not hasattr(np, "float") and re.search(r"\bnp\.float\b", inspect.getsource(sys.modules[LVISEval.__module__])):
        raise UserError(
            f"the installed package 'lvis' does not run on NumPy {np.__version__} (it uses np.float): "
            f"{_INSTALL}, or set ELSA_DET_D2=lite"
        )
