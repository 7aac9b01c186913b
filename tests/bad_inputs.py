"""Every bad input that the train command is meant to meet, with what it answers: makes ``docs/messages.md``.

::

    python tests/bad_inputs.py           # write the page
    python tests/bad_inputs.py --check   # exit code 1 if it is out of date

Each case is made in a temporary folder and given to the command's ``main`` in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import json
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from elsa_det.commands.train import main
from elsa_det.config import config_root
from elsa_det.d2 import LazyConfig

PAGE = Path(__file__).parents[1] / "docs" / "messages.md"
CONFIGS = config_root()
SIDE = 48

COMMAND, DATA, LABELS, CHECKPOINT, TRAINING = (
    "Command and config",
    "COCO-format data",
    "Images and label maps",
    "Checkpoints",
    "While training",
)
ERROR, DROPPED, WARNING = "error", "dropped", "warning"


@dataclass(frozen=True)
class Case:
    """A bad input.

    Args:
        section: of the page.
        title: what is bad.
        arguments: makes it in a folder, and gives the command line.
        says: texts in the message: the value, the place, the remedy.
        outcome: "error", "dropped" (counted, and the run goes on) or "warning".
        foreign: pattern of what another package says, which its versions word differently.
        free: bytes that are free, in place of the machine's.
    """

    section: str
    title: str
    arguments: Callable[[Path], list[str]]
    says: tuple[str, ...]
    outcome: str = ERROR
    foreign: str | None = None
    free: int | None = None


@dataclass(frozen=True)
class Answer:
    """What the command answered: exit code, message, and all that it printed."""

    code: int
    message: str
    printed: str


# --- good data, which the cases spoil ---------------------------------------------------------------------------------


def coco(folder: Path) -> dict:
    """Two images of two objects each, in ``folder``."""
    rng = np.random.default_rng(0)
    names = ("a.jpg", "b.jpg")
    for name in names:
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / name)
    box = [8, 8, 24, 20]
    polygon = [8, 8, 32, 8, 32, 28, 8, 28]
    objects = [
        {"id": i + 1, "image_id": i % 2 + 1, "category_id": i // 2 + 1, "bbox": box, "area": 480, "iscrowd": 0}
        | {"segmentation": [polygon]}
        for i in range(4)
    ]
    return {
        "images": [{"id": i + 1, "file_name": n, "width": SIDE, "height": SIDE} for i, n in enumerate(names)],
        "categories": [{"id": 1, "name": "nut"}, {"id": 2, "name": "fig"}],
        "annotations": objects,
    }


def detector(folder: Path, *more: str, config: str = "own_data/elsa_nano_mrcnn", flags: tuple[str, ...] = ()) -> list:
    return [
        *("--config-file", str(CONFIGS / f"{config}.py"), *flags),
        "train.init_checkpoint=none",
        f"train.output_dir={folder}/run",
        f"dataset.train.json_file={folder}/train.json",
        f"dataset.train.image_root={folder}",
        f"dataset.test.json_file={folder}/train.json",
        f"dataset.test.image_root={folder}",
        "model.backbone.bottom_up.embed_dim=16",
        "dataset.image_size.train=[48]",
        "dataset.image_size.test=48",
        "dataloader.train.total_batch_size=2",
        "train.max_iter=1",
        "train.eval_period=0",
        "train.device=cpu",
        "train.seed=3",
        "train.check_memory=off",
        *more,
    ]


def with_json(change: Callable[[dict], object] | None = None, *more: str, **options) -> Callable[[Path], list[str]]:
    """The case of a json in which ``change`` has spoiled something."""

    def arguments(folder: Path) -> list[str]:
        content = coco(folder)
        if change is not None:
            change(content)
        (folder / "train.json").write_text(json.dumps(content))
        return detector(folder, *(text.replace("FOLDER", str(folder)) for text in more), **options)

    return arguments


def with_files(change: Callable[[Path], object], *more: str, **options) -> Callable[[Path], list[str]]:
    """The case of good data in whose folder ``change`` has spoiled a file."""

    def arguments(folder: Path) -> list[str]:
        made = with_json(None, *more, **options)(folder)
        change(folder)
        return made

    return arguments


def with_config(text: str, *more: str) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        (folder / "mine.py").write_text(text)
        return ["--config-file", str(folder / "mine.py"), *more]

    return arguments


def label_maps(change: Callable[[Path], object] | None = None, *more: str) -> Callable[[Path], list[str]]:
    """Two images and their label maps of three classes, in which ``change`` has spoiled something."""

    def arguments(folder: Path) -> list[str]:
        rng = np.random.default_rng(0)
        for part in ("images", "labels"):
            (folder / part).mkdir()
        for name in ("a", "b"):
            Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"images/{name}.jpg")
            Image.fromarray(rng.integers(0, 3, (SIDE, SIDE), dtype=np.uint8)).save(folder / f"labels/{name}.png")
        if change is not None:
            change(folder)
        places = [
            f"dataset.{part}.{kind}_root={folder}/{kind}s" for part in ("train", "test") for kind in ("image", "label")
        ]
        config = str(CONFIGS / "quickstart/elsa_nano_upernet.py")
        given = [text.replace("FOLDER", str(folder)) for text in more]
        return [
            *("--config-file", config, f"train.output_dir={folder}/run", "train.device=cpu", *places),
            *("dataset.classes=null", "dataset.num_classes=3", "train.check_memory=off", *given),
        ]

    return arguments


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def first(content: dict, **changes) -> None:
    content["annotations"][0].update(changes)


def checkpoint(state: dict, change: Callable[[Path], object] | None = None, *more: str) -> Callable[[Path], list[str]]:
    def save(folder: Path) -> None:
        torch.save(state, folder / "start.pth")
        if change is not None:
            change(folder / "start.pth")

    return with_files(save, "train.init_checkpoint=FOLDER/start.pth", *more)


def drop(content: dict) -> None:
    first(content, bbox=[8, 8, 0, 20])
    content["annotations"][1]["segmentation"] = [[8, 8, 32, 8]]
    content["annotations"].append({**content["annotations"][2], "id": 9, "image_id": 77})
    content["images"].append({**content["images"][0], "id": 3})


BACKBONE = {"patch_embed.proj.weight": torch.zeros(96, 3, 4, 4), "layers.0.blocks.0.norm1.weight": torch.zeros(96)}
DRY = ("--dry-run",)
DROPS = with_json(drop, flags=DRY)

CASES = [
    Case(COMMAND, "no --config-file", lambda folder: [], ("--config-file FILE", "configs")),
    Case(
        COMMAND,
        "a config file that is not there",
        lambda folder: ["--config-file", f"{folder}/gone.py"],
        ("config file", "gone.py does not exist", "looked for"),
    ),
    Case(COMMAND, "an empty config file", with_config(""), ("has no model, dataloader, train", "empty", "start from")),
    Case(
        COMMAND,
        "a config with a mistake in its Python",
        with_config("model = dict(\n    a=1,\n    b 2\n)\n"),
        ("mine.py, line 3", "b 2", "Correct the file"),
        foreign=r"(?<=line 3: ).*?(?=: 'b 2')",
    ),
    Case(
        COMMAND,
        "a config that imports what is not there",
        with_config("from elsa_det.d2 import LazyCall\nimport no_such_module\n"),
        ("mine.py, line 2", "no_such_module", "Correct the file"),
    ),
    Case(
        COMMAND,
        "a config that uses a name that is not there",
        with_config("model = dict(a=b)\n"),
        ("mine.py, line 1", "'b' is not defined", "Correct the file"),
    ),
    Case(
        COMMAND,
        "an unknown key",
        with_json(None, "train.max_iterations=3"),
        ("train.max_iterations", "Did you mean train.max_iter", "+train.max_iterations=… adds a key"),
    ),
    Case(
        COMMAND,
        "a value of another type",
        with_json(None, "train.max_iter=many"),
        ("train.max_iter is a whole number", "'many' is text", "as in train.max_iter=1"),
    ),
    Case(
        COMMAND,
        "a word that is no key=value",
        with_json(None, "train.max_iter"),
        ("'train.max_iter' is not understood", "write key=value"),
        foreign=r"(?<=\. )[^.]*$",
    ),
    Case(
        COMMAND,
        "an option behind the changes to the config",
        with_json(None, "--resume"),
        ("--resume", "options come first"),
    ),
    Case(
        COMMAND,
        "--num-gpus 0",
        with_json(None, flags=("--num-gpus", "0")),
        ("--num-gpus 0", "at least 1", "train.device=cpu"),
    ),
    Case(
        COMMAND,
        "--dry-run with --eval-only",
        with_json(None, flags=("--dry-run", "--eval-only")),
        ("--dry-run tries a training", "leave --eval-only out"),
    ),
    Case(
        COMMAND,
        "--eval-only without a checkpoint",
        with_json(None, flags=("--eval-only",)),
        ("--eval-only", "train.init_checkpoint=none", "needs a checkpoint of the whole model"),
    ),
    Case(
        COMMAND,
        "a switch with a value that it does not have",
        with_json(None, "train.check_data=deep"),
        ("train.check_data='deep'", "must be one of off, auto, names, headers, pixels"),
    ),
    Case(
        COMMAND,
        "a deterministic run without a seed",
        with_json(None, "train.deterministic=True", "train.seed=-1"),
        ("train.deterministic=True", "train.seed=-1", "set train.seed=0"),
    ),
    Case(
        COMMAND,
        "an output folder that cannot be written",
        with_files(lambda folder: (folder / "file").write_text(""), "train.output_dir=FOLDER/file/run"),
        ("train.output_dir=", "file/run cannot be written", "file is a file", "Choose another folder"),
    ),
    Case(
        COMMAND,
        "too little memory",
        with_json(None, "train.check_memory=error"),
        (
            "too little memory",
            "0.01 GB are free",
            "2 images in a pass, of 48 x 48",
            "Set train.accumulate",
            "check_memory=warn",
        ),
        free=10_000_000,
    ),
    Case(
        COMMAND,
        "too little memory, with train.check_memory=warn",
        with_json(None, "train.check_memory=warn", flags=DRY),
        ("too little memory", "0.01 GB are free", "Set train.accumulate"),
        outcome=WARNING,
        free=10_000_000,
    ),
    Case(
        COMMAND,
        "--resume without a checkpoint",
        with_json(None, flags=("--resume",)),
        ("--resume", "no checkpoint in", "/run", "starts at iteration 0"),
        outcome=WARNING,
    ),
    # --- COCO-format data
    Case(
        DATA,
        "no data named",
        lambda folder: [
            "--config-file",
            str(CONFIGS / "own_data/elsa_nano_mrcnn.py"),
            f"train.output_dir={folder}/run",
        ],
        ("no data is named for train", "set dataset.train.json_file and dataset.train.image_root"),
    ),
    Case(
        DATA,
        "a json that is not there",
        with_json(None, "dataset.train.json_file=FOLDER/gone.json"),
        ("dataset.train.json_file=", "gone.json does not exist", "looked for"),
    ),
    Case(
        DATA,
        "an image folder that is not there",
        with_json(None, "dataset.train.image_root=FOLDER/gone"),
        ("dataset.train.image_root=", "gone is not a folder", "looked for"),
    ),
    Case(
        DATA,
        "a json that is cut off",
        with_files(lambda folder: cut(folder / "train.json")),
        ("train.json is not json", "Is the download complete?"),
        foreign=r"(?<=is not json: ).*?(?=\. Is the)",
    ),
    Case(
        DATA,
        "a json that is a list",
        with_files(lambda folder: (folder / "train.json").write_text("[1, 2]")),
        ("train.json is not in COCO format", "got a list", "the lists images, annotations and categories"),
    ),
    Case(
        DATA,
        "a json without categories",
        with_json(lambda content: content.pop("categories")),
        ("train.json is not in COCO format", "no list 'categories'", "only ['annotations', 'images']"),
    ),
    Case(
        DATA,
        "a category id out of range",
        with_json(lambda content: first(content, category_id=7)),
        ("category_id 7 is not among the categories", "annotation 1 of image 1 (a.jpg)", "1 to 2; add the category"),
    ),
    Case(
        DATA,
        "two categories of one id",
        with_json(lambda content: content["categories"][1].update(id=1)),
        ("train.json", "two categories share an id or a name", "['nut', 'fig']", "Number the categories anew"),
    ),
    Case(
        DATA,
        "two images of one id",
        with_json(lambda content: content["images"][1].update(id=1)),
        ("image id is used twice", "image 1 (b.jpg)", "number the images anew"),
    ),
    Case(
        DATA,
        "two annotations of one id",
        with_json(lambda content: content["annotations"][1].update(id=1)),
        ("annotation id is used twice", "annotation 1 of image 2", "number the annotations anew"),
    ),
    Case(
        DATA,
        "an image that is missing",
        with_files(lambda folder: (folder / "b.jpg").unlink()),
        ("image file is missing", "image 2 (b.jpg)", "put it there, or take it out of the json"),
    ),
    Case(
        DATA,
        "an image that is truncated",
        with_files(lambda folder: cut(folder / "b.jpg")),
        ("image is truncated", "image 2 (b.jpg)", "replace the file"),
    ),
    Case(
        DATA,
        "an image that is none",
        with_files(lambda folder: (folder / "b.jpg").write_text("no pixels")),
        ("image cannot be read", "image 2 (b.jpg)", "replace the file"),
        foreign=r"(?<=image cannot be read: ).*?(?=\. replace)",
    ),
    Case(
        DATA,
        "an image of another size than the json says",
        with_files(lambda folder: Image.new("RGB", (32, 40)).save(folder / "b.jpg")),
        ("image is 32 x 40, the json says 48 x 48", "image 2 (b.jpg)", "correct width and height in the json"),
    ),
    Case(
        DATA,
        "an image outside its folder",
        with_json(lambda content: content["images"][1].update(file_name="../b.jpg")),
        ("file_name leads out of the image folder", "image 2 (../b.jpg)", "below"),
    ),
    Case(
        DATA,
        "a box outside its image",
        with_json(lambda content: first(content, bbox=[60, 8, 10, 10])),
        ("box [60, 8, 10, 10] lies outside its image of 48 x 48", "annotation 1 of image 1", "[x, y, width, height]?"),
    ),
    Case(
        DATA,
        "a box that is none",
        with_json(lambda content: first(content, bbox=[1, 2, "wide", 4])),
        ("bbox is [1, 2, 'wide', 4]", "annotation 1 of image 1", "a bbox is [x, y, width, height] in pixels"),
    ),
    Case(
        DATA,
        "a polygon outside its image",
        with_json(lambda content: first(content, segmentation=[[60, 8, 70, 8, 70, 20]])),
        ("polygon lies outside its image of 48 x 48", "annotation 1 of image 1", "[x, y, x, y, …]"),
    ),
    Case(
        DATA,
        "a mask (RLE) of another size than its image",
        with_json(lambda content: first(content, segmentation={"size": [40, 40], "counts": [0, 1600]})),
        ("RLE of 40 x 40 in an image of 48 x 48", "annotation 1 of image 1", "'size' is [height, width]"),
    ),
    Case(
        DATA,
        "no object in any image",
        with_json(lambda content: content.update(annotations=[])),
        ("there is nothing to train on", "none of the 2 images", "train.json", "Name the file with the annotations"),
    ),
    Case(
        DATA,
        "a class count that contradicts the data",
        with_json(None, "model.roi_heads.num_classes=9", config="quickstart/elsa_nano_mrcnn_finetune"),
        ("train.json has 2 classes (nut, fig), the model 9", "set model.roi_heads.num_classes=2"),
    ),
    Case(
        DATA,
        "test data with other classes than the training data",
        with_files(
            lambda folder: (folder / "test.json").write_text(
                json.dumps({**coco(folder), "categories": [{"id": 1, "name": "nut"}, {"id": 2, "name": "date"}]})
            ),
            "dataset.test.json_file=FOLDER/test.json",
        ),
        ("test.json has other classes than", "lacks 'fig' and has 'date' more", "need the same list of categories"),
    ),
    Case(
        DATA,
        "a box of no area",
        DROPS,
        ("dropped: zero-area box [8, 8, 0, 20]", "annotation 1 of image 1 (a.jpg)"),
        outcome=DROPPED,
    ),
    Case(
        DATA,
        "a polygon with fewer than 3 points",
        DROPS,
        ("dropped: polygon with 2 points, fewer than 3", "annotation 2 of image 2 (b.jpg)"),
        outcome=DROPPED,
    ),
    Case(
        DATA,
        "an annotation of an image that is not in the file",
        DROPS,
        ("dropped: annotation of an image that is not in the file", "annotation 9 of image 77"),
        outcome=DROPPED,
    ),
    Case(
        DATA,
        "an image without objects",
        DROPS,
        ("3 images, 1 of them without objects",),
        outcome=DROPPED,
    ),
    # --- images and label maps
    Case(
        LABELS,
        "a folder that is not there",
        label_maps(None, "dataset.train.label_root=FOLDER/gone"),
        ("label_root=", "gone is not a folder", "looked for"),
    ),
    Case(
        LABELS,
        "one folder without the other",
        label_maps(None, "dataset.train.label_root=null"),
        ("own data needs both", "label_root=None", "Set the other one"),
    ),
    Case(
        LABELS,
        "an image without its label map",
        label_maps(lambda folder: (folder / "labels/b.png").unlink()),
        ("1 images without a label map (b)", "1 label maps", "add or remove files"),
    ),
    Case(
        LABELS,
        "no number of classes",
        label_maps(None, "dataset.num_classes=null"),
        ("own data needs its classes", "set dataset.num_classes=N, or dataset.classes=FILE"),
    ),
    Case(
        LABELS,
        "names that contradict the number of classes",
        label_maps(None, "dataset.classes=[nut,fig]"),
        ("names 2 classes, dataset.num_classes is 3", "set dataset.num_classes=2"),
    ),
    Case(
        LABELS,
        "a label beyond the classes",
        label_maps(None, "dataset.num_classes=2"),
        ("label file", "labels/a.png has", "pixels of the values [2]", "set dataset.num_classes"),
    ),
    Case(
        LABELS,
        "a label map of another size than its image",
        label_maps(lambda folder: Image.new("L", (32, 40)).save(folder / "labels/b.png")),
        ("labels/b.png is 32×40 pixels", "images/b.jpg is 48×48", "nearest-neighbour"),
    ),
    Case(
        LABELS,
        "a label map in colours",
        label_maps(lambda folder: Image.new("RGB", (SIDE, SIDE)).save(folder / "labels/b.png")),
        ("labels/b.png has the pixel format RGB", "Convert each colour to the index of its class"),
    ),
    Case(
        LABELS,
        "a label map that is truncated",
        label_maps(lambda folder: cut(folder / "labels/b.png")),
        ("labels/b.png cannot be read", "truncated or no image", "restore it"),
        foreign=r"(?<=cannot be read: ).*?(?=\. It is)",
    ),
    Case(
        LABELS,
        "an image that is truncated",
        label_maps(lambda folder: cut(folder / "images/b.jpg")),
        ("images/b.jpg: image is truncated", "Replace the file"),
    ),
    # --- checkpoints
    Case(
        CHECKPOINT,
        "none named",
        with_json(None, "train.init_checkpoint="),
        ("train.init_checkpoint is empty", "name a file, or train from scratch with train.init_checkpoint=none"),
    ),
    Case(
        CHECKPOINT,
        "one that is not there",
        with_json(None, "train.init_checkpoint=FOLDER/gone.pth"),
        ("gone.pth does not exist", "looked for", "train.init_checkpoint=PATH"),
    ),
    Case(
        CHECKPOINT,
        "one that is truncated",
        checkpoint(BACKBONE, cut),
        ("start.pth", "is truncated or not a PyTorch checkpoint", "download or copy it again"),
        foreign=r"(?<=checkpoint \().*(?=\): download)|[\d,]+(?= bytes)",
    ),
    Case(
        CHECKPOINT,
        "one that would run code",
        checkpoint({"model": BACKBONE, "hook": argparse.ArgumentParser}),
        ("start.pth holds an object of argparse.ArgumentParser", "could run code", "allow_code=True"),
    ),
    Case(
        CHECKPOINT,
        "one of another model",
        checkpoint(BACKBONE),
        ("start.pth looks like", "but the config's backbone is", "use the weights of that model"),
    ),
    Case(
        CHECKPOINT,
        "one with another number of classes",
        checkpoint({}, lambda path: save_detector(path, classes=5), "train.init_allow_mismatch=False"),
        (
            "does not fit the model",
            "train.init_allow_mismatch=True",
            "shape (6, 256) in the file, (3, 256) in the model",
        ),
    ),
    Case(
        CHECKPOINT,
        "one with NaN in it",
        checkpoint({}, lambda path: save_detector(path, classes=2, spoiled="roi_heads.box_predictor.cls_score.bias")),
        ("roi_heads.box_predictor.cls_score.bias", "NaN"),
    ),
    # --- while training
    Case(
        TRAINING,
        "a truncated image, with train.check_data=off",
        with_files(
            lambda folder: [cut(folder / name) for name in ("a.jpg", "b.jpg")],
            "train.check_data=off",
            "dataloader.train.num_workers=1",
        ),
        (".jpg cannot be used", "Replace the file", "train.check_data=pixels finds all such images"),
        foreign=r"(?<=cannot be used: ).*?(?=\. Replace)|\b[ab](?=\.jpg)",
    ),
]


def save_detector(path: Path, classes: int, spoiled: str | None = None) -> None:
    """Weights of the model of :func:`detector`, with another number of classes, or NaN in one of them."""
    from elsa_det import get_config
    from elsa_det.d2 import instantiate

    overrides = ["model.backbone.bottom_up.embed_dim=16", f"model.roi_heads.num_classes={classes}"]
    state = instantiate(get_config("quickstart/elsa_nano_mrcnn_finetune", overrides).model).state_dict()
    if spoiled is not None:
        state[spoiled][0] = float("nan")
    torch.save({"model": state}, path)


# --- running ----------------------------------------------------------------------------------------------------------


def ask(case: Case, root: Path) -> Answer:
    """Make the case in a folder of its own below ``root``, and give it to the command."""
    code, printed, told, folder = _run(case.arguments, case.free, root)
    if case.outcome == ERROR:
        message = told[told.rfind("error: ") :].strip()
    else:
        found = [line for line in printed.splitlines() if case.says[0] in line]
        message = re.sub(r"^.*?(?=--resume: |Memory: |Data: )", "", found[0]) if found else ""
    return Answer(code, _shortened(message, folder, case.foreign), printed)


@functools.cache
def _run(arguments: Callable[[Path], list[str]], free_bytes: int | None, root: Path) -> tuple[int, str, str, Path]:
    """Exit code, all that is printed, standard error, and the folder; several cases may be of one run."""
    folder = Path(tempfile.mkdtemp(dir=root))
    argv = arguments(folder)
    out, err = io.StringIO(), io.StringIO()
    free = mock.patch("elsa_det.engine.memory_check.free_memory", return_value=(free_bytes, "MemAvailable"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        loading = mock.patch.object(LazyConfig, "load", side_effect=_loaded)
        with loading, free if free_bytes is not None else contextlib.nullcontext():
            code = main(argv)
    return code, out.getvalue() + err.getvalue(), err.getvalue(), folder


_load = LazyConfig.load


def _loaded(path: str) -> Any:
    """A config, those of the package run once only: that takes longer than all else here."""
    return copy.deepcopy(_loaded_once(path)) if Path(path).is_relative_to(CONFIGS) else _load(path)


_loaded_once = functools.cache(_load)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Loggers that a run sets up write to what was standard output then: they are put back."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "elsa_det")]
    before = [(logger, list(logger.handlers), logger.propagate, logger.level) for logger in loggers]
    try:
        yield
    finally:
        for logger, handlers, propagate, level in before:
            for handler in [handler for handler in logger.handlers if handler not in handlers]:
                logger.removeHandler(handler)
                handler.close()
            logger.propagate = propagate
            logger.setLevel(level)


def _shortened(message: str, folder: Path, foreign: str | None) -> str:
    message = re.sub(r"\x1b\[[\d;]*m", "", message).replace(str(folder), "mine").replace(str(CONFIGS), "configs")
    return re.sub(foreign, "…", message) if foreign else message


def ask_all(root: Path) -> list[Answer]:
    return [ask(case, root) for case in CASES]


def page(answers: list[Answer]) -> str:
    lines = [
        "<!-- Made by tests/bad_inputs.py: change that file, not this one. -->",
        "",
        "# Messages",
        "",
        "What the train command answers to bad input, word for word; `mine` is the user's folder, and … stands for",
        "what other packages say. An error ends it with exit code 1, before anything is trained. What is dropped is",
        "counted in the log, and left out of training; [`tools/check_data.py`](own_data.md) lists every such place.",
        "Whatever has no entry here and ends with a traceback is a fault of elsa_det.",
    ]
    section = None
    for case, answer in zip(CASES, answers):
        if case.section != section:
            section = case.section
            lines += ["", f"## {section}", "", "| input | exit code | | message |", "|---|---|---|---|"]
        text = answer.message.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
        lines.append(f"| {case.title} | {answer.code} | {case.outcome} | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the page instead of writing it")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as temporary:
        made = page(ask_all(Path(temporary)))
    if check and PAGE.read_text(encoding="utf-8") != made:
        sys.exit(f"{PAGE} is out of date: run python tests/bad_inputs.py")
    if not check:
        PAGE.write_text(made, encoding="utf-8")
