"""COCO's metrics for boxes and masks."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from ..data.catalog import MetadataCatalog
from ..data.datasets.coco import convert_to_coco_json
from ..structures import Instances
from ..utils import comm
from ..utils.file_io import PathManager
from ..utils.logger import create_small_table
from .evaluator import DatasetEvaluator

__all__ = ["COCOEvaluator", "instances_to_coco_json"]

_TASKS = ("bbox", "segm")

logger = logging.getLogger(__name__)


class COCOEvaluator(DatasetEvaluator):
    """AP of instances as COCO computes it (see cocodataset.org/#detection-eval).

    It works for any registered dataset of boxes and masks: one without a COCO json is converted first. Scores are
    percentages; NaN stands where there is nothing to compute one from, such as no objects of a size.
    """

    _METRICS: tuple[str, ...] = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # in the order of COCOeval.stats
    _MAX_DETS = 100
    _RESULTS_FILE = "coco_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ):
        """
        Args:
            dataset_name: A registered dataset. Its metadata names the annotations by ``json_file``; otherwise they
                are written to ``output_dir`` as ``<dataset_name>_coco_format.json``.
            tasks: Of ``"bbox"`` and ``"segm"``. If not given, boxes, and masks where predictions have them.
            distributed: Collect predictions from all ranks; otherwise each rank evaluates its own.
            output_dir: Where to leave ``instances_predictions.pth`` (what the evaluator saw, with the model's class
                numbers) and ``coco_instances_results.json`` (COCO's result format, with the dataset's category ids).
            max_dets_per_image: Detections of an image that count, best first: 100 if not given, as in COCO.
            use_fast_impl: Accepted for compatibility: pycocotools does the computation in any case.
            kpt_oks_sigmas: Accepted for compatibility; keypoints are not evaluated.
            allow_cached_coco: Use annotations converted by an earlier run. Say no if the dataset has changed.

        Raises:
            ValueError: Unknown tasks, keypoint sigmas, a limit below 1, or no ``output_dir`` to convert to.
        """
        unknown = [task for task in tasks or () if task not in _TASKS]
        if unknown or kpt_oks_sigmas:
            asked = f"tasks={unknown}" if unknown else f"kpt_oks_sigmas={kpt_oks_sigmas}"
            raise ValueError(
                f"{self._name}: {asked} is not supported here, the tasks are {list(_TASKS)}. "
                "Keypoints need Detectron2 itself."
            )
        if max_dets_per_image is not None and max_dets_per_image < 1:
            raise ValueError(f"{self._name}: max_dets_per_image={max_dets_per_image} must be at least 1.")
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = self._MAX_DETS if max_dets_per_image is None else max_dets_per_image
        self._metadata = MetadataCatalog.get(dataset_name)
        self._predictions: list[dict[str, Any]] = []

        if not hasattr(self._metadata, "json_file"):
            if output_dir is None:
                raise ValueError(
                    f"{self._name}: dataset '{dataset_name}' has no COCO json file, so it must be converted. "
                    "Give an output_dir to write the converted annotations to."
                )
            logger.info("Converting '%s' to COCO format ...", dataset_name)
            converted = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            convert_to_coco_json(dataset_name, converted, allow_cached=allow_cached_coco)
            self._metadata.json_file = converted

        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api = COCO(PathManager.get_local_path(self._metadata.json_file))
        # The json of a public test set has no annotations: all we can do is to write results for its server.
        self._has_annotations = "annotations" in self._coco_api.dataset

    @property
    def _name(self) -> str:
        return type(self).__name__

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """
        Args:
            inputs: Dataset dicts; ``image_id`` is used.
            outputs: Of each image, ``instances``.

        Raises:
            NotImplementedError: there are ``proposals`` in their place.
        """
        for image, output in zip(inputs, outputs):
            image_id = image["image_id"]
            if "instances" in output:
                found = instances_to_coco_json(output["instances"].to("cpu"), image_id)
                self._predictions.append({"image_id": image_id, "instances": found})
            elif "proposals" in output:
                raise NotImplementedError(f"{self._name}: box proposals are not part of d2lite; install Detectron2.")

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """
        Args:
            img_ids: Evaluate instances on these images only; on all of the dataset if not given.

        Returns:
            ``bbox`` and ``segm``, as far as there are predictions, each a dict of scores. Empty if there are none,
            and on every rank but the main one.

        Raises:
            ValueError: Predictions that do not fit the dataset: a class it does not have, an image it does not have.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain.from_iterable(comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            logger.warning("[%s] Did not receive valid predictions.", self._name)
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as file:
                torch.save(predictions, file)

        return OrderedDict(self._evaluate_instances(predictions, img_ids))

    def _evaluate_instances(
        self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None
    ) -> dict[str, dict[str, float]]:
        logger.info("Preparing results for COCO format ...")
        detections = self._in_dataset_terms([found for image in predictions for found in image["instances"]])
        if self._output_dir:
            path = os.path.join(self._output_dir, self._RESULTS_FILE)
            logger.info("Saving results to %s", path)
            with PathManager.open(path, "w") as file:
                file.write(json.dumps(detections))
        if not self._has_annotations:
            logger.info("Annotations are not available for evaluation.")
            return {}

        tasks = self._tasks or ("bbox", *(["segm"] if any("segmentation" in found for found in detections) else []))
        logger.info("Evaluating predictions ...")
        return {task: self._evaluate_task(task, detections, img_ids) for task in sorted(tasks)}

    def _in_dataset_terms(self, detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The detections with the dataset's category ids, after a look at whether they fit it."""
        strangers = {found["image_id"] for found in detections} - set(self._coco_api.getImgIds())
        if strangers:
            raise ValueError(
                f"{self._name}: {len(strangers)} image id(s) of the predictions, such as {next(iter(strangers))!r}, "
                f"are not in {self._metadata.json_file}. Was the model run on another dataset?"
            )
        class_of_category = self._class_of_category()
        if class_of_category is None:
            return detections
        num_classes = len(class_of_category)
        if sorted(class_of_category.values()) != list(range(num_classes)):
            raise ValueError(
                f"{self._name}: thing_dataset_id_to_contiguous_id of dataset '{self._metadata.name}' must map "
                f"category ids to 0…{num_classes - 1}, but maps them to {sorted(class_of_category.values())}."
            )
        category_of_class = {index: category for category, index in class_of_category.items()}
        for found in detections:
            if found["category_id"] not in category_of_class:
                raise ValueError(
                    f"{self._name}: a prediction has class {found['category_id']}, but dataset "
                    f"'{self._metadata.name}' has {num_classes} classes, numbered 0…{num_classes - 1}. "
                    "Does num_classes of the model fit the dataset?"
                )
        return [{**found, "category_id": category_of_class[found["category_id"]]} for found in detections]

    def _class_of_category(self) -> dict[int, int] | None:
        """The model's class of each category of the dataset; None if they are the same numbers."""
        return self._metadata.get("thing_dataset_id_to_contiguous_id")

    def _evaluate_task(
        self, task: str, detections: list[dict[str, Any]], img_ids: Sequence[int] | None
    ) -> dict[str, float]:
        if not detections:
            logger.warning("No predictions from the model!")
            return dict.fromkeys(self._METRICS, float("nan"))

        coco_eval = _run_coco_eval(self._coco_api, detections, task, self._max_dets, img_ids)
        scores = {name: _percent(value) for name, value in zip(self._METRICS, coco_eval.stats)}
        _log_scores(task, scores)

        names = self._metadata.get("thing_classes")
        if names is not None and len(names) > 1:
            by_category = _ap_by_category(coco_eval, names)
            logger.info("Per-category %s AP: \n%s", task, _category_table(by_category))
            scores.update({f"AP-{name}": ap for name, ap in by_category})
        return scores


def _log_scores(task: str, scores: dict[str, float]) -> None:
    logger.info("Evaluation results for %s: \n%s", task, create_small_table(scores))
    if not np.isfinite(list(scores.values())).all():
        logger.info("Some metrics cannot be computed and is shown as NaN.")


def instances_to_coco_json(instances: Instances, img_id: Any) -> list[dict[str, Any]]:
    """Detections of one image in COCO's result format, with the model's class numbers as ``category_id``.

    Args:
        instances: On the CPU, with ``pred_boxes``, ``scores``, ``pred_classes``, and ``pred_masks`` (N × H × W,
            boolean) if there are masks, which are stored run-length encoded.
        img_id: Goes into every detection.
    """
    boxes = instances.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    columns: dict[str, list] = {
        "category_id": instances.pred_classes.tolist(),
        "bbox": boxes.tolist(),
        "score": instances.scores.tolist(),
    }
    if instances.has("pred_masks"):
        columns["segmentation"] = [_encode_mask(mask) for mask in instances.pred_masks]
    return [{"image_id": img_id, **dict(zip(columns, row))} for row in zip(*columns.values())]


def _encode_mask(mask: torch.Tensor) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {**rle, "counts": rle["counts"].decode("ascii")}  # json knows no bytes


class _COCOevalAnyLimit(COCOeval):
    """COCOeval whose summary goes with any ``maxDets``: the original has no overall AP but at 100 detections."""

    def summarize(self) -> None:
        limits = self.params.maxDets
        top = limits[-1]
        rows: list[tuple[str, float | None, str, int]] = [
            ("precision", None, "all", top),
            ("precision", 0.5, "all", top),
            ("precision", 0.75, "all", top),
            *(("precision", None, area, top) for area in ("small", "medium", "large")),
            *(("recall", None, "all", limit) for limit in limits),
            *(("recall", None, area, top) for area in ("small", "medium", "large")),
        ]
        self.stats = np.array([self._mean(*row) for row in rows])

    def _mean(self, what: str, iou: float | None, area: str, limit: int) -> float:
        """Mean over the entries that exist (they are not -1), printed as COCO does; -1 if none exists."""
        params = self.params
        table = self.eval[what][..., params.areaRngLbl.index(area), params.maxDets.index(limit)]
        first, last = (params.iouThrs[0], params.iouThrs[-1]) if iou is None else (iou, iou)
        table = table[(params.iouThrs >= first - 1e-6) & (params.iouThrs <= last + 1e-6)]
        table = table[table > -1]
        mean = float(table.mean()) if table.size else -1.0
        title, short = ("Average Precision", "(AP)") if what == "precision" else ("Average Recall", "(AR)")
        ious = f"{first:.2f}:{last:.2f}" if iou is None else f"{iou:.2f}"
        print(f" {title:<18} {short} @[ IoU={ious:<9} | area={area:>6s} | maxDets={limit:>3d} ] = {mean:.3f}")
        return mean


def _of_task(detections: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """Copies, so that what loadRes writes into them stays out of our results, with what the task needs."""
    # With a box in it, a detection's size is taken from that, not from its mask.
    unused = {"bbox": ("segmentation",), "segm": ("bbox",)}[task]
    detections = [{key: value for key, value in found.items() if key not in unused} for found in detections]
    if task == "segm" and any("segmentation" not in found for found in detections):
        raise ValueError("Masks ('segm') are to be evaluated, but there are predictions without pred_masks.")
    return detections


def _run_coco_eval(
    coco_gt: COCO, detections: list[dict[str, Any]], task: str, max_dets: int, img_ids: Sequence[int] | None
) -> COCOeval:
    detections = _of_task(detections, task)
    coco_eval = _COCOevalAnyLimit(coco_gt, coco_gt.loadRes(detections), task)
    coco_eval.params.maxDets = sorted({1, min(10, max_dets), max_dets})
    if img_ids is not None:
        coco_eval.params.imgIds = img_ids
    for stage in (coco_eval.evaluate, coco_eval.accumulate, coco_eval.summarize):
        stage()
    return coco_eval


def _percent(value: float) -> float:
    """COCO's -1 for 'nothing to average' becomes NaN."""
    return float(value * 100) if value >= 0 else float("nan")


def _ap_by_category(coco_eval: COCOeval, names: Sequence[str]) -> list[tuple[str, float]]:
    precisions = coco_eval.eval["precision"]  # IoU × recall × category × area × limit
    if len(names) != precisions.shape[2]:
        raise ValueError(
            f"COCOEvaluator: the metadata has {len(names)} thing_classes, "
            f"but the annotations have {precisions.shape[2]} categories. They must agree."
        )
    by_category = []
    for index, name in enumerate(names):
        precision = precisions[:, :, index, 0, -1]
        precision = precision[precision > -1]
        by_category.append((str(name), float(precision.mean() * 100) if precision.size else float("nan")))
    return by_category


def _category_table(pairs: Sequence[tuple[str, float]], pairs_per_row: int = 3) -> str:
    columns = min(pairs_per_row, len(pairs))
    rows = [
        list(itertools.chain.from_iterable(pairs[start : start + columns])) for start in range(0, len(pairs), columns)
    ]
    return tabulate(rows, headers=["category", "AP"] * columns, tablefmt="pipe", floatfmt=".3f", numalign="left")
