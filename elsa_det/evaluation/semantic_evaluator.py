"""Evaluation of semantic segmentation: mean IoU and its relatives, the confusion matrix, predictions as files."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from ..d2 import DatasetEvaluator, MetadataCatalog, comm
from ..data.semantic import label_encoding, read_labels
from ..errors import UserError
from .folders import shared_folder
from .semantic_metrics import dense_confusion, segmentation_scores, sparse_confusion

logger = logging.getLogger(__name__)

TASK = "sem_seg"


class SemanticEvaluator(DatasetEvaluator):
    """mIoU, fwIoU, mACC, pACC and the scores of each class, in percent, under Detectron2's names.

    Labels are read from the dataset's files and compared at their own size. Each image counts once, also where a
    sampler gives one to several processes. Below ``output_dir`` there are, after each evaluation,
    ``sem_seg_evaluation.json`` and ``sem_seg_confusion.npz`` (``confusion`` [ground truth, prediction], ``names``).
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        write_predictions: bool = False,
    ) -> None:
        """
        Args:
            dataset_name: A registered segmentation dataset.
            output_dir: Where files go; none are written without it.
            write_predictions: Write the predictions to ``<output_dir>/sem_seg_predictions``: PNGs whose pixels mean
                what those of the dataset's label files mean, as the official tools take them (ADE20K: class index + 1;
                Cityscapes: labelIds).

        Raises:
            UserError: The dataset is none for segmentation, or predictions have nowhere to go.
        """
        if write_predictions and not output_dir:
            raise UserError("write_predictions needs an output_dir to write to")
        self.dataset_name, self.output_dir = dataset_name, output_dir
        self.write_predictions = write_predictions
        self.encoding = label_encoding(dataset_name)
        self.metadata = MetadataCatalog.get(dataset_name)
        self.class_names: list[str] = list(self.metadata.stuff_classes)
        self.folder: Path | None = None
        self.confusion: np.ndarray | None = None
        """(N, N) int64 [ground truth, prediction] of the last evaluation, on the main process."""
        self._images: dict[str, np.ndarray] = {}

    def reset(self) -> None:
        self._images = {}
        self.confusion = None
        if self.write_predictions:
            self.folder = shared_folder(self.output_dir, f"{TASK}_predictions", (".png",))

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take in a batch.

        Args:
            inputs: With "file_name" and "sem_seg_file_name".
            outputs: With "sem_seg_labels", (H, W) integers, or "sem_seg", (C, H, W) scores, at the size of the image.

        Raises:
            UserError: A label map cannot be read or does not fit the prediction.
        """
        for given, answer in zip(inputs, outputs):
            predicted = predicted_labels(answer, self.encoding.num_classes)
            name = given["file_name"]
            if "sem_seg_file_name" not in given:
                raise UserError(f"image {name} has no label map (sem_seg_file_name): it cannot be evaluated")
            truth = read_labels(given["sem_seg_file_name"], self.encoding, size=predicted.shape, image=name)
            self._images[name] = sparse_confusion(
                truth, predicted, self.encoding.num_classes, self.encoding.ignore_label
            )
            if self.folder is not None:
                target = self.prediction_file(given)
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(self.encoding.encode(predicted)).save(target)

    def prediction_file(self, given: dict[str, Any]) -> Path:
        """Where the prediction of an image goes: its path below the folder of images, ending in .png."""
        assert self.folder is not None
        path, root = Path(given["file_name"]), self.metadata.get("image_root")
        below = path.relative_to(root) if root and path.is_relative_to(root) else Path(path.name)
        if ".." in below.parts:  # it would lead out of the folder of predictions
            below = Path(path.name)
        return self.folder / below.with_suffix(".png")

    def evaluate(self) -> OrderedDict[str, Any] | None:
        """``{"sem_seg": {"mIoU": …, "fwIoU": …, "IoU-<class>": …, …}}`` on the main process, None on the others."""
        parts = comm.gather(self._images)
        if not comm.is_main_process():
            return None
        images = {name: pairs for part in parts for name, pairs in part.items()}
        if not images:
            logger.warning("%s: no image was evaluated", TASK)
            return OrderedDict()
        self.confusion = dense_confusion(list(images.values()), self.encoding.num_classes)
        scores = segmentation_scores(self.confusion, self.class_names)
        logger.info("%s on %d images of %s:\n%s", TASK, len(images), self.dataset_name, self._table(scores))
        if self.output_dir:
            self._save(scores, len(images))
        return OrderedDict({TASK: scores})

    def _table(self, scores: dict[str, float]) -> str:
        assert self.confusion is not None
        pixels = self.confusion.sum(axis=1)
        share = pixels / max(1, pixels.sum())
        rows = [
            [name, _shown(scores[f"IoU-{name}"]), _shown(scores[f"ACC-{name}"]), f"{100 * part:.2f}"]
            for name, part, guessed in zip(self.class_names, share, self.confusion.sum(axis=0))
            if part or guessed
        ]
        table = tabulate(rows, ["class", "IoU", "accuracy", "% of pixels"], tablefmt="pipe", stralign="right")
        summary = ", ".join(f"{key} {scores[key]:.2f}" for key in ("mIoU", "fwIoU", "mACC", "pACC"))
        absent = int((pixels == 0).sum())
        note = f" ({absent} of {len(pixels)} classes do not occur and do not count in the means)" if absent else ""
        return f"{table}\n{summary}{note}"

    def _save(self, scores: dict[str, float], images: int) -> None:
        folder = Path(os.fspath(self.output_dir or "."))
        folder.mkdir(parents=True, exist_ok=True)
        assert self.confusion is not None
        finite = {key: None if math.isnan(value) else value for key, value in scores.items()}
        content = {"dataset": self.dataset_name, "images": images, TASK: finite}
        (folder / f"{TASK}_evaluation.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        np.savez_compressed(
            folder / f"{TASK}_confusion.npz", confusion=self.confusion, names=np.array(self.class_names)
        )


def predicted_labels(answer: dict[str, Any], num_classes: int) -> np.ndarray:
    """The (H, W) class indices of a model's answer, which has them ("sem_seg_labels") or scores ("sem_seg").

    Raises:
        UserError: It has neither, or not the classes of the dataset.
    """
    if "sem_seg_labels" in answer:
        labels = torch.as_tensor(answer["sem_seg_labels"]).cpu().numpy()
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise UserError(
                f"the model predicts the labels {labels.min()}..{labels.max()}, the dataset has {num_classes} classes: "
                "set the number of classes of the model"
            )
        return labels
    if "sem_seg" not in answer:
        raise UserError(f"the model gives no 'sem_seg' but {sorted(answer)}: it is no segmentor")
    scores = answer["sem_seg"]
    if scores.shape[0] != num_classes:
        raise UserError(f"the model has {scores.shape[0]} classes, the dataset {num_classes}: set that of the model")
    return scores.argmax(dim=0).cpu().numpy()


def _shown(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
