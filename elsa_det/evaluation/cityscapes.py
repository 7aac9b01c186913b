"""Cityscapes' own evaluation, by the functions of cityscapesscripts, of semantic and of instance segmentation."""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from ..d2 import DatasetEvaluator, comm
from ..data.semantic.cityscapes import CITYSCAPES_THING_CLASSES, CITYSCAPES_THING_IDS
from ..errors import UserError
from .folders import discard_temporary, shared_folder
from .semantic_evaluator import TASK, SemanticEvaluator

logger = logging.getLogger(__name__)

_IMAGE_ENDING = "_leftImg8bit"


class CityscapesSemanticEvaluator(SemanticEvaluator):
    """:class:`SemanticEvaluator`, and the benchmark's IoU, iIoU (by instances), IoU_sup, iIoU_sup (categories).

    Predictions are written as ``<frame>_pred.png`` with labelIds: below ``output_dir``, or into a temporary folder.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        super().__init__(dataset_name, output_dir)
        self._files: dict[str, str] = {}

    def reset(self) -> None:
        super().reset()
        self._files = {}
        self.folder = shared_folder(self.output_dir, f"{TASK}_predictions", (".png",))

    def prediction_file(self, given: dict[str, Any]) -> Path:
        assert self.folder is not None
        return self.folder / f"{_frame(given)}_pred.png"

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        super().process(inputs, outputs)
        self._files |= {str(self.prediction_file(given)): given["sem_seg_file_name"] for given in inputs}

    def evaluate(self) -> OrderedDict[str, Any] | None:
        parts = comm.gather(self._files)
        results = super().evaluate()
        if not results:
            return results
        pairs = {predicted: truth for part in parts for predicted, truth in part.items()}
        with_instances = all(os.path.isfile(_instances_of(truth)) for truth in pairs.values())
        if not with_instances:
            logger.warning("There are no instanceIds files beside the labels: iIoU and iIoU_sup cannot be told")
        scores = _official(
            "evalPixelLevelSemanticLabeling", list(pairs), list(pairs.values()), evalInstLevelScore=with_instances
        )
        assert self.folder is not None
        discard_temporary(self.folder, self.output_dir)
        results[TASK] |= {
            "IoU": 100 * scores["averageScoreClasses"],
            "iIoU": 100 * scores["averageScoreInstClasses"] if with_instances else float("nan"),
            "IoU_sup": 100 * scores["averageScoreCategories"],
            "iIoU_sup": 100 * scores["averageScoreInstCategories"] if with_instances else float("nan"),
        }
        return results


class CityscapesInstanceEvaluator(DatasetEvaluator):
    """The benchmark's AP and AP50 of instance masks, and the AP of each class, in percent, under "segm".

    Predictions are written in the benchmark's format, one text file a frame and one PNG an instance: below
    ``output_dir``, or into a temporary folder.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: A registered ``elsa_cityscapes_instance_*`` dataset; for messages.
            output_dir: Where predictions go.
        """
        self.dataset_name, self.output_dir = dataset_name, output_dir
        self.folder: Path | None = None
        self._files: dict[str, str] = {}

    def reset(self) -> None:
        self._files = {}
        self.folder = shared_folder(self.output_dir, "segm_predictions", (".png", ".txt", ".json"))

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take in a batch.

        Args:
            inputs: With "file_name" and "instance_file_name".
            outputs: With "instances" that have ``pred_masks``, ``pred_classes`` and ``scores``.

        Raises:
            UserError: There are no masks, or a class is none of Cityscapes' eight.
        """
        assert self.folder is not None
        for given, answer in zip(inputs, outputs):
            frame = _frame(given)
            instances = answer["instances"].to("cpu")
            if not instances.has("pred_masks"):
                raise UserError(
                    "the model finds no masks, and Cityscapes evaluates nothing else: use one with a mask head"
                )
            lines = []
            for number, (mask, index, score) in enumerate(
                zip(instances.pred_masks.numpy(), instances.pred_classes.tolist(), instances.scores.tolist())
            ):
                if not 0 <= index < len(CITYSCAPES_THING_IDS):
                    raise UserError(
                        f"the model predicts class {index}, {self.dataset_name} has {len(CITYSCAPES_THING_IDS)} "
                        f"({', '.join(CITYSCAPES_THING_CLASSES)}): set model.roi_heads.num_classes=8"
                    )
                file = f"{frame}_{number}.png"
                Image.fromarray(mask.astype(np.uint8) * 255).save(self.folder / file)
                lines.append(f"{file} {CITYSCAPES_THING_IDS[index]} {score}\n")
            listing = self.folder / f"{frame}_pred.txt"
            listing.write_text("".join(lines))
            self._files[str(listing)] = given["instance_file_name"]

    def evaluate(self) -> OrderedDict[str, Any] | None:
        """``{"segm": {"AP": …, "AP50": …, "AP-<class>": …}}`` on the main process, None on the others."""
        parts = comm.gather(self._files)
        if not comm.is_main_process():
            return None
        pairs = {listing: truth for part in parts for listing, truth in part.items()}
        if not pairs:
            logger.warning("segm: no image was evaluated")
            return OrderedDict()
        assert self.folder is not None
        averages = _official(
            "evalInstanceLevelSemanticLabeling",
            list(pairs),
            list(pairs.values()),
            predictionPath=str(self.folder.absolute()),
            gtInstancesFile=str(self.folder / "ground_truth.json"),
        )["averages"]
        discard_temporary(self.folder, self.output_dir)
        scores = {"AP": averages["allAp"], "AP50": averages["allAp50%"]}
        scores |= {f"AP-{name}": averages["classes"][name]["ap"] for name in CITYSCAPES_THING_CLASSES}
        return OrderedDict(segm={key: 100 * float(value) for key, value in scores.items()})


def _frame(given: dict[str, Any]) -> str:
    return Path(given["file_name"]).stem.removesuffix(_IMAGE_ENDING)


def _instances_of(label_file: str) -> str:
    return label_file.replace("labelIds", "instanceIds")


def _official(script: str, predictions: list[str], truths: list[str], **settings: Any) -> dict[str, Any]:
    """Run an evaluation script of cityscapesscripts on files.

    Raises:
        UserError: The script gave up; it prints why.
    """
    module: ModuleType = importlib.import_module(f"cityscapesscripts.evaluation.{script}")
    args = copy.copy(module.args)
    for key, value in {"quiet": True, "JSONOutput": False, "colorized": False, **settings}.items():
        setattr(args, key, value)
    try:
        with _adapted(module):
            return module.evaluateImgLists(predictions, truths, args)
    except SystemExit as error:  # how the script speaks of errors
        raise UserError(
            f"cityscapesscripts ({script}) cannot evaluate {len(predictions)} files in {Path(predictions[0]).parent}; "
            "what it printed says why"
        ) from error


@contextlib.contextmanager
def _adapted(module: ModuleType) -> Iterator[None]:
    """Have a script of cityscapesscripts work with this NumPy and leave no ``matches.json`` in the current folder."""
    changes: dict[str, Any] = {}
    if not hasattr(np, "in1d"):
        changes["np"] = _NumPyWithIn1d("numpy")
    if hasattr(module, "writeDict2JSON"):
        write = module.writeDict2JSON
        changes["writeDict2JSON"] = lambda content, file: None if file == "matches.json" else write(content, file)
    before = {name: getattr(module, name) for name in changes}
    for name, value in changes.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


class _NumPyWithIn1d(ModuleType):
    """NumPy, and ``in1d``, which NumPy 2.4 no longer has and cityscapesscripts 2.3 uses."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def in1d(values: np.ndarray, known: Sequence[Any], invert: bool = False) -> np.ndarray:
        return np.isin(np.ravel(values), known, invert=invert)
