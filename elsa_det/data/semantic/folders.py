"""Semantic segmentation data by registered name, or as a folder of images and one of label maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...d2 import DatasetCatalog, MetadataCatalog
from ...errors import UserError
from ...json_files import read_json
from ..paths import check_inside
from .colors import class_colors
from .labels import IGNORE_LABEL, LabelEncoding, plain_encoding, zero_ignored_encoding

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
_SHOWN = 3


def registered_semantic(
    name: str | None,
    image_root: str | None = None,
    label_root: str | None = None,
    *,
    num_classes: int | None = None,
    classes: str | Sequence[str] | None = None,
    ignore_label: int = IGNORE_LABEL,
    reduce_zero_label: bool = False,
) -> str:
    """The name under which a segmentation dataset is registered; own data is registered by its label folder.

    Args:
        name: A registered dataset, used when the folders are None; the other arguments then do not count.
        image_root: Folder of own images, with its subfolders.
        label_root: Folder of their label maps, each at the place of its image and with its name (the ending aside).
        num_classes: How many classes there are; may be left out if ``classes`` tells.
        classes: Their names: a list, a text file with one name a line, a JSON file with a list, or the name of a
            registered dataset with the same classes.
        ignore_label: Pixels of this value are neither trained on nor counted.
        reduce_zero_label: Pixels count the classes from 1; 0 is ignored.

    Raises:
        UserError: Only one folder is given, neither ``num_classes`` nor ``classes`` is, the two contradict each other,
            ``name`` is not registered, an image lacks its label map or the other way round, or the same labels were
            registered with other settings.
        FileNotFoundError: A folder or the file of the names does not exist.
    """
    if (image_root is None) != (label_root is None):
        raise UserError(
            f"own data needs both: got image_root={image_root!r}, label_root={label_root!r}. Set the other one of "
            "dataset.train or dataset.test too"
        )
    if image_root is None or label_root is None:
        return _known_name(name)
    for what, root in (("image_root", image_root), ("label_root", label_root)):
        if not Path(root).is_dir():
            raise FileNotFoundError(f"{what}={root} is not a folder (looked for {Path(root).absolute()})")
    names = class_names_from(classes, num_classes)
    make = zero_ignored_encoding if reduce_zero_label else plain_encoding
    load = partial(pair_folders, str(image_root), str(label_root))
    if str(label_root) not in DatasetCatalog.list():
        load()  # what does not fit is said before anything else is done
    return register_semantic(
        str(label_root),
        load,
        names,
        make(len(names), ignore_label),
        image_root=str(image_root),
        label_root=str(label_root),
    )


def register_semantic(
    name: str,
    load: Callable[[], list[dict[str, Any]]],
    classes: Sequence[str],
    encoding: LabelEncoding,
    *,
    colors: Sequence[tuple[int, int, int]] | None = None,
    **facts: Any,
) -> str:
    """Enter a dataset into the catalogues; again with the same facts is fine.

    Args:
        name: In the catalogues.
        load: Gives the dataset dicts, with "file_name" and "sem_seg_file_name"; called when the data is used.
        classes: Names by class index.
        encoding: What the pixels of the label files mean.
        colors: RGB in 0..255 by class index; distinct ones are made up if there are none.
        facts: More metadata, such as ``image_root``.

    Raises:
        UserError: The name is taken with other facts.
    """
    if len(classes) != encoding.num_classes:
        raise UserError(f"dataset {name} has {len(classes)} names for {encoding.num_classes} classes")
    facts |= {
        "stuff_classes": list(classes),
        "stuff_colors": [tuple(color) for color in colors or class_colors(len(classes))],
        "ignore_label": encoding.ignore_label,
        "label_encoding": encoding,
        "evaluator_type": "sem_seg",
    }
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog.list():
        for key, value in facts.items():
            if metadata.get(key) != value:
                raise UserError(
                    f"dataset {name} is already registered with {key}={_brief(metadata.get(key))}, now {_brief(value)} "
                    "is asked for: within one process a label folder has one meaning"
                )
        return name
    metadata.set(**facts)
    DatasetCatalog.register(name, load)
    return name


def label_encoding(name: str) -> LabelEncoding:
    """What the pixels of a registered dataset's label files mean.

    Raises:
        UserError: The dataset is not registered, or is none for segmentation.
    """
    _known_name(name)
    metadata = MetadataCatalog.get(name)
    encoding = metadata.get("label_encoding")
    if encoding is not None:
        return encoding
    classes = metadata.get("stuff_classes")
    if classes is None:
        raise UserError(
            f"dataset {name} has no classes for semantic segmentation (stuff_classes): name another one, or set "
            "image_root and label_root for own data"
        )
    # Registered the way Detectron2 does it: files hold class indices.
    return plain_encoding(len(classes), metadata.get("ignore_label", IGNORE_LABEL))


def pair_folders(image_root: str, label_root: str) -> list[dict[str, Any]]:
    """The dataset dicts of a folder of images and one of label maps, by name.

    Raises:
        UserError: An image has no label map or the other way round, two files share a name, or there is nothing.
    """
    images = _by_stem(Path(image_root), IMAGE_SUFFIXES)
    labels = _by_stem(Path(label_root), LABEL_SUFFIXES)
    return pair(images, labels, f"image_root={image_root}", f"label_root={label_root}")


def pair(images: dict[str, Path], labels: dict[str, Path], image_place: str, label_place: str) -> list[dict[str, Any]]:
    """Dataset dicts of images and label maps that share a key, in the order of the keys.

    Raises:
        UserError: There is nothing, or partners are missing; both directions are counted.
    """
    if not images or not labels:
        raise UserError(
            f"there are {len(images)} images ({', '.join(IMAGE_SUFFIXES)}) in {image_place} and "
            f"{len(labels)} label maps ({', '.join(LABEL_SUFFIXES)}) in {label_place}: segmentation needs pairs of them"
        )
    alone = [
        f"{len(missing)} {what} ({', '.join(missing[:_SHOWN])}{', …' if len(missing) > _SHOWN else ''})"
        for what, missing in (
            ("images without a label map", sorted(images.keys() - labels.keys())),
            ("label maps without an image", sorted(labels.keys() - images.keys())),
        )
        if missing
    ]
    if alone:
        raise UserError(
            f"{image_place} has {len(images)} images and {label_place} {len(labels)} label maps, which do not pair up: "
            f"{'; '.join(alone)}. Partners have the same path below their folders, the ending aside: add or remove "
            "files until every one has its partner"
        )
    return [{"file_name": str(images[key]), "sem_seg_file_name": str(labels[key])} for key in sorted(images)]


def class_names_from(classes: str | Sequence[str] | None, num_classes: int | None) -> list[str]:
    """The names of the classes from a list, a file or a registered dataset, or made up from their number.

    Raises:
        UserError: Neither is given, the two contradict each other, or the file has something else in it.
        FileNotFoundError: There is no such file.
    """
    if classes is None:
        if num_classes is None:
            raise UserError(
                "own data needs its classes: set dataset.num_classes=N, or dataset.classes=FILE (text: a name a line; "
                "JSON: a list of names)"
            )
        if num_classes < 1:
            raise UserError(f"dataset.num_classes={num_classes}: at least one class is needed")
        return [f"class {index}" for index in range(num_classes)]
    if not isinstance(classes, (str, os.PathLike)):
        names = [str(name) for name in classes]
    elif str(classes) in DatasetCatalog.list():
        names = list(MetadataCatalog.get(str(classes)).get("stuff_classes") or [])
    else:
        names = _read_names(Path(classes))
    if num_classes is not None and num_classes != len(names):
        shown = classes if isinstance(classes, str) else f"{names[:_SHOWN]}"
        raise UserError(
            f"dataset.classes={shown} names {len(names)} classes, dataset.num_classes is {num_classes}: set "
            f"dataset.num_classes={len(names)}, or correct the names"
        )
    return names


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"dataset.classes={path} is not a file (looked for {path.absolute()})")
    if path.suffix.lower() == ".json":
        names = read_json(path)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"dataset.classes={path} must hold a list of names, by class index")
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"dataset.classes={path} is not text in UTF-8: {error}") from error
        names = [line.strip() for line in lines if line.strip()]
    if not names or len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"dataset.classes={path} has {f'{twice} twice' if twice else 'no names in it'}")
    return names


def _known_name(name: str | None) -> str:
    if name is None:
        raise UserError(
            "no data is named: set dataset.train.image_root and dataset.train.label_root, and the same of dataset.test"
        )
    if name not in DatasetCatalog.list():
        raise UserError(
            f"dataset {name!r} is not registered. Known: {', '.join(sorted(DatasetCatalog.list()))}. "
            "For own data set image_root and label_root beside the name."
        )
    return name


def _by_stem(root: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or not path.is_file():
            continue
        key = path.relative_to(root).with_suffix("").as_posix()
        if key in found:
            raise UserError(f"{found[key]} and {path} share their name, the ending aside: remove or rename one")
        found[key] = path
    check_inside((str(path) for path in found.values() if path.is_symlink()), root.absolute(), f"folder {root}")
    return found


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
