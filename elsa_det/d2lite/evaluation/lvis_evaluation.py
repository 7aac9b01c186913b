"""LVIS's metrics for boxes and masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.catalog import MetadataCatalog
from .coco_evaluation import COCOEvaluator, _log_scores, _of_task, _percent

__all__ = ["LVISEvaluator"]

_FREQUENCIES = ("r", "c", "f")  # in fewer than 10, in fewer than 100, in more images of the training set

logger = logging.getLogger(__name__)


class LVISEvaluator(COCOEvaluator):
    """AP of instances as LVIS computes it (Gupta et al., CVPR 2019, section 3.2).

    It is COCO's, with three differences: a class counts on those images only of which it is known whether it is there;
    a detection that meets no object counts as neither right nor wrong where its class is not annotated in full; and the
    limit of detections goes for all classes of an image together. Scores are percentages, APr, APc and APf those of
    rare, common and frequent classes. NaN stands where there is nothing to compute one from (where Detectron2 gives
    -100). The numbers are those of the ``lvis`` package, which is not needed.
    """

    _METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    _MAX_DETS = 300
    _RESULTS_FILE = "lvis_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ):
        """
        Args:
            dataset_name: A registered dataset, whose metadata names annotations in LVIS's format by ``json_file``.
            tasks: Of ``"bbox"`` and ``"segm"``. If not given, boxes, and masks where predictions have them.
            distributed: Collect predictions from all ranks; otherwise each rank evaluates its own.
            output_dir: Where to leave ``instances_predictions.pth`` (what the evaluator saw, with the model's class
                numbers) and ``lvis_instances_results.json`` (for LVIS's server, with the dataset's category ids).
            max_dets_per_image: Detections of an image that count, best first: 300 if not given, as in LVIS.

        Raises:
            ValueError: Unknown tasks, a limit below 1, or annotations that are not in LVIS's format.
        """
        if not hasattr(MetadataCatalog.get(dataset_name), "json_file"):
            raise ValueError(
                f"LVISEvaluator: the metadata of dataset '{dataset_name}' names no json_file. "
                "Register the dataset with register_lvis_instances."
            )
        super().__init__(dataset_name, tasks, distributed, output_dir, max_dets_per_image=max_dets_per_image)
        self._has_annotations = len(self._coco_api.anns) > 0
        if self._has_annotations:
            self._federation = _Federation(self._coco_api, self._metadata.json_file)

    def _class_of_category(self) -> dict[int, int]:
        known = super()._class_of_category()
        return {category: category - 1 for category in self._coco_api.getCatIds()} if known is None else known

    def _evaluate_task(
        self, task: str, detections: list[dict[str, Any]], img_ids: Sequence[int] | None
    ) -> dict[str, float]:
        if not detections:
            return super()._evaluate_task(task, detections, img_ids)
        start = time.perf_counter()
        logger.info("At most %d detections of an image count.", self._max_dets)
        best = _best_of_each_image(_of_task(detections, task), self._max_dets)
        precision = _precision(self._coco_api, self._federation, best, task, self._max_dets, img_ids)
        scores = _summary(precision, self._federation.frequency)
        logger.info("The evaluation took %.1f seconds.", time.perf_counter() - start)
        _log_scores(task, scores)
        return scores


class _Federation:
    """What is known of which images. The annotations of a COCO object are made fit for COCOeval on the way.

    Attributes:
        known: by category the images that have an object of it, or of which it is known that they have none.
        incomplete: by category the images in which not all objects of it are annotated.
        frequency: by category "r", "c" or "f".
    """

    def __init__(self, coco: COCO, path: str) -> None:
        def entry(what: str, item: dict[str, Any], key: str) -> Any:
            if key not in item:
                raise ValueError(
                    f"LVISEvaluator: {what} {item['id']} of {path} has no {key!r}, so the file is not in LVIS's "
                    "format. For annotations in COCO's format use COCOEvaluator."
                )
            return item[key]

        self.known: dict[int, set[int]] = defaultdict(set)
        self.incomplete: dict[int, set[int]] = defaultdict(set)
        for number, image in coco.imgs.items():
            for category in entry("image", image, "neg_category_ids"):
                self.known[category].add(number)
            for category in entry("image", image, "not_exhaustive_category_ids"):
                self.incomplete[category].add(number)
        for annotation in coco.anns.values():
            self.known[annotation["category_id"]].add(annotation["image_id"])
            annotation["iscrowd"] = 0  # LVIS knows no crowds, and COCOeval asks for them
        self.frequency = {c: entry("category", coco.cats[c], "frequency") for c in sorted(coco.cats)}
        if strange := set(self.frequency.values()) - set(_FREQUENCIES):
            raise ValueError(f"LVISEvaluator: 'frequency' in {path} is one of r, c, f, but there is {sorted(strange)}.")


class _CategoryEval(COCOeval):
    """COCOeval for one category, in which unmatched detections in some images are ignored."""

    def __init__(
        self,
        truth: COCO,
        found: COCO,
        task: str,
        *,
        category: int,
        images: list[int],
        incomplete: set[int],
        max_dets: int,
    ) -> None:
        super().__init__(truth, found, task)
        self.params.catIds, self.params.imgIds, self.params.maxDets = [category], images, [max_dets]
        self._incomplete = incomplete

    def evaluateImg(self, imgId: int, catId: int, aRng: list[float], maxDet: int) -> dict[str, Any] | None:
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        if result is not None and imgId in self._incomplete:
            result["dtIgnore"] = np.logical_or(result["dtIgnore"], result["dtMatches"] == 0)
        return result


def _best_of_each_image(detections: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for found in detections:
        of_image[found["image_id"]].append(found)
    return [
        found
        for several in of_image.values()
        for found in sorted(several, key=lambda each: each["score"], reverse=True)[:limit]
    ]


def _precision(
    truth: COCO,
    federation: _Federation,
    detections: list[dict[str, Any]],
    task: str,
    max_dets: int,
    img_ids: Sequence[int] | None,
) -> np.ndarray:
    """Precision by IoU threshold, recall, category and size of objects: (10, 101, K, 4), -1 where it is not defined."""
    wanted = set(truth.imgs if img_ids is None else img_ids)
    by_category = []
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools would report every category
        results = truth.loadRes(detections)
        for category in federation.frequency:
            images = sorted(federation.known[category] & wanted)
            one = _CategoryEval(
                truth,
                results,
                task,
                category=category,
                images=images,
                incomplete=federation.incomplete[category],
                max_dets=max_dets,
            )
            if images:
                one.evaluate()
                one.accumulate()
                by_category.append(one.eval["precision"][..., 0])
            else:
                params = one.params
                by_category.append(-np.ones((len(params.iouThrs), len(params.recThrs), 1, len(params.areaRng))))
    return np.concatenate(by_category, axis=2)


def _summary(precision: np.ndarray, frequency: dict[int, str]) -> dict[str, float]:
    def mean(table: np.ndarray) -> float:
        table = table[table > -1]
        return _percent(table.mean()) if table.size else float("nan")

    every_size = precision[..., 0]
    groups = np.array(list(frequency.values()))
    return {
        "AP": mean(every_size),
        "AP50": mean(every_size[0]),  # the thresholds are 0.5, 0.55, …
        "AP75": mean(every_size[5]),
        **{f"AP{size}": mean(precision[..., i]) for i, size in enumerate("sml", start=1)},
        **{f"AP{group}": mean(every_size[:, :, groups == group]) for group in _FREQUENCIES},
    }
