"""Evaluation of fixed predictions."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from d2_access import d2_module
from fidelity.cases_data import registered
from fidelity.harness import case, error_of, folder, generator, log_lines, random_boxes
from lvis_files import lvis_content
from PIL import Image

from elsa_det import d2

SIDE = 160
CATEGORIES = {5: "ant", 9: "bee", 2: "cat", 40: "dog"}  # ids with gaps, not in order
ROUNDING = 1e-9  # of sums in double precision


def crowded_coco() -> dict:
    """Six images; the first has 26 objects of one class, more than the middle limit of detections."""
    annotations = []
    for image in range(6):
        boxes = random_boxes(26 if image == 0 else 5, SIDE, SIDE, seed=image, smallest=6.0)
        if image == 0:  # small ones in a grid, which do not overlap
            place = torch.arange(26.0)
            boxes = torch.stack([place % 6 * 26, place // 6 * 30, place % 6 * 26 + 20, place // 6 * 30 + 22], 1)
        for number, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 5 if image == 0 else list(CATEGORIES)[(image + number) % 3],  # of dog there are none
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(image == 4 and number == 0),
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                }
            )
            if annotations[-1]["iscrowd"]:
                annotations[-1]["segmentation"] = {"size": [SIDE, SIDE], "counts": [3000, 900, SIDE * SIDE - 3900]}
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": SIDE, "width": SIDE} for n in range(6)],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        "annotations": annotations,
    }


def detections(content: dict, masks: bool) -> list[tuple[dict, dict]]:
    """Objects, shifted a little more each; some with another class; and boxes of nothing."""
    contiguous = {category: index for index, category in enumerate(sorted(CATEGORIES))}
    out = []
    for image in content["images"]:
        own = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        boxes = torch.tensor([each["bbox"] for each in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = torch.cat([boxes, random_boxes(4, SIDE, SIDE, seed=image["id"] + 90)])
        boxes[:, 0::2] += torch.linspace(0, 7, len(boxes))[:, None]
        classes = torch.tensor([contiguous[each["category_id"]] for each in own] + [0, 1, 2, 3])
        classes[::7] = (classes[::7] + 1) % 4
        scores = torch.rand(len(boxes), generator=generator(image["id"] + 40))
        found = d2.Instances((SIDE, SIDE), pred_boxes=d2.Boxes(boxes), scores=scores, pred_classes=classes)
        if masks:
            found.pred_masks = torch.stack([_filled(box) for box in boxes.round().int().tolist()])
            found.pred_masks[-4:, :, ::2] = False  # of another size than their boxes
        out.append(({"image_id": image["id"], "file_name": ""}, {"instances": found}))
    return out


def _filled(box: list[int]) -> torch.Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[max(0, box[1]) : box[3], max(0, box[0]) : box[2]] = True
    return mask


def evaluated(evaluator, pairs, **options) -> dict:
    evaluator.reset()
    for inputs, outputs in pairs:
        evaluator.process([inputs], [outputs])
    return {task: {k: float(v) for k, v in scores.items()} for task, scores in evaluator.evaluate(**options).items()}


def _summary(text: str) -> list[str]:
    """COCO's twelve lines, which have the recalls at each limit, that the results have not."""
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if "Average" in line]


@case(
    "COCOEvaluator",
    what="scores and printed summaries of boxes and masks: limits of detections, some images, tasks, files",
    atol=ROUNDING,
)
def coco():
    out: dict = {}
    content = crowded_coco()
    with folder() as at, registered("fid_eval"):
        path = at / "coco.json"
        path.write_text(json.dumps(content))
        d2.register_coco_instances("fid_eval", {}, str(path), "")
        d2.DatasetCatalog.get("fid_eval")
        for name, masks, options, evaluation in (
            ("boxes", False, {"output_dir": str(at / "out")}, {}),
            ("masks", True, {"tasks": ("bbox", "segm")}, {}),
            ("found_tasks", True, {}, {"img_ids": [1, 2, 5]}),
            ("limit_12", False, {"max_dets_per_image": 12}, {}),
            ("limit_200", False, {"max_dets_per_image": 200}, {}),
            ("slow", False, {"use_fast_impl": False}, {"img_ids": [0]}),
        ):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                evaluator = d2.COCOEvaluator("fid_eval", distributed=False, **options)
                scores = evaluated(evaluator, detections(content, masks), **evaluation)
            out[name] = {"scores": scores, "summary": _summary(printed.getvalue())}
        out["files"] = sorted(each.name for each in (at / "out").iterdir())
        results = json.loads((at / "out" / "coco_instances_results.json").read_text())
        out["result"] = [len(results), dict(sorted(results[0].items())), dict(sorted(results[-1].items()))]
        predictions = torch.load(at / "out" / "instances_predictions.pth", weights_only=True)
        out["prediction"] = [len(predictions), sorted(predictions[0]), len(predictions[0]["instances"])]
        with contextlib.redirect_stdout(io.StringIO()), log_lines() as lines:
            nobody = d2.Instances((SIDE, SIDE), pred_boxes=d2.Boxes(torch.zeros(0, 4)))
            nobody.scores, nobody.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
            evaluator = d2.COCOEvaluator("fid_eval", distributed=False)
            empty = [(inputs, {"instances": nobody}) for inputs, _ in detections(content, False)]
            out["nothing_found"] = evaluated(evaluator, empty)
            out["nothing_seen"] = evaluated(evaluator, [])
        tables = [line for line in lines if "|" in line]
        out["errors"] = [error_of(lambda: d2.COCOEvaluator("fid_unregistered", distributed=False)), len(tables)]
    return out


@case("COCOEvaluator", what="a dataset that has no file: what is written for it, and the scores", atol=1e-6)
def converted_coco():
    boxes = random_boxes(3, SIDE, SIDE, seed=8, smallest=20)
    records = [
        {
            "file_name": f"{n}.png",
            "height": SIDE,
            "width": SIDE,
            "image_id": n,
            "annotations": [
                {
                    "bbox": box,
                    "bbox_mode": d2.BoxMode.XYXY_ABS,
                    "category_id": index % 2,
                    "segmentation": [_corners(box)],
                }
                for index, box in enumerate((boxes + n).tolist())
            ],
        }
        for n in range(2)
    ]
    with folder() as at, registered("fid_records"), log_lines(), contextlib.redirect_stdout(io.StringIO()):
        d2.DatasetCatalog.register("fid_records", lambda: records)
        d2.MetadataCatalog.get("fid_records").thing_classes = ["a", "b"]
        evaluator = d2.COCOEvaluator("fid_records", distributed=False, output_dir=str(at))
        written = json.loads((at / "fid_records_coco_format.json").read_text())
        found = [d2.Instances((SIDE, SIDE)) for _ in records]
        for n, each in enumerate(found):
            each.pred_boxes, each.scores = d2.Boxes(boxes + n + 3), torch.tensor([0.9, 0.8, 0.3])
            each.pred_classes = torch.tensor([0, 1, 1])
        scores = evaluated(evaluator, [({"image_id": n}, {"instances": each}) for n, each in enumerate(found)])
    keys = ("images", "categories")
    return {
        "scores": scores,
        "written": {key: [json.dumps(each, sort_keys=True) for each in written[key]] for key in keys},
        "annotations": [dict(sorted(each.items())) for each in written["annotations"]],
    }


def _corners(box: list[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


@case("LVISEvaluator", what="scores of boxes and masks, limits, the file of results", atol=1e-6)
def lvis():
    content = lvis_content()
    side = content["images"][0]["height"]
    with folder() as at, registered("lvis_v1_fid"):
        path = at / "lvis.json"
        path.write_text(json.dumps(content))
        d2.register_lvis_instances("lvis_v1_fid", {}, str(path), "")
        if d2.PROVIDER == d2.LITE:
            d2.DatasetCatalog.get("lvis_v1_fid")
        pairs = []
        for image in content["images"]:
            own = [each for each in content["annotations"] if each["image_id"] == image["id"]]
            boxes = torch.tensor([each["bbox"] for each in own], dtype=torch.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            boxes = torch.cat([boxes + 4, boxes.flip(0) - 9, random_boxes(5, side, side, seed=image["id"])])
            classes = [each["category_id"] - 1 for each in own]
            found = d2.Instances((side, side), pred_boxes=d2.Boxes(boxes))
            found.scores = torch.rand(len(boxes), generator=generator(image["id"]))
            found.pred_classes = torch.tensor(classes * 2 + [0, 1, 2, 3, 0])
            pairs.append(({"image_id": image["id"]}, {"instances": found}))
        out = {}
        # the lvis package asks NumPy for an alias that it no longer has
        old_alias = mock.patch.object(np, "float", float, create=True)
        with contextlib.redirect_stdout(io.StringIO()), log_lines(), old_alias:
            for name, options in {
                "usual": {"output_dir": str(at / "out")},
                "few": {"max_dets_per_image": 2, "tasks": ("bbox",)},
            }.items():
                scores = evaluated(d2.LVISEvaluator("lvis_v1_fid", distributed=False, **options), pairs)
                # of what has no objects Detectron2 says -100: see intended.py
                out[name] = {
                    task: {k: v for k, v in all_.items() if v == v and v >= 0} for task, all_ in scores.items()
                }
            first = content["annotations"][0]
            box = torch.tensor(first["bbox"], dtype=torch.float32)
            box[2:] += box[:2]
            for number in (299, 300):  # the one detection that is right comes after so many
                boxes = torch.cat([torch.tensor([[0.0, 0, 2, 2]]).repeat(number, 1), box[None]])
                found = d2.Instances(
                    (side, side), pred_boxes=d2.Boxes(boxes), scores=torch.linspace(1, 0.1, number + 1)
                )
                found.pred_classes = torch.full((number + 1,), first["category_id"] - 1)
                evaluator = d2.LVISEvaluator("lvis_v1_fid", tasks=("bbox",), distributed=False)
                scores = evaluated(evaluator, [({"image_id": first["image_id"]}, {"instances": found})])
                out[f"after_{number}"] = scores["bbox"]["AP"]
        results = json.loads((at / "out" / "lvis_instances_results.json").read_text())
        return out | {"results": [len(results), dict(sorted(results[0].items()))]}


class Counter(d2.DatasetEvaluator):
    """Counts what it sees."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, []

    def reset(self):
        self.calls = ["reset"]

    def process(self, inputs, outputs):
        self.calls.append([inputs, outputs])

    def evaluate(self):
        return {self.name: len(self.calls)} if self.name else None


class Doubler(torch.nn.Module):
    """Remembers the modes in which it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list = []

    def forward(self, x):
        self.modes.append([self.training, torch.is_grad_enabled()])
        return [2 * each for each in x]


@case(
    "inference_on_dataset",
    "inference_context",
    "DatasetEvaluator",
    "DatasetEvaluators",
    what="what evaluators see, modes of the model, callbacks, merged results, lines of the log; errors",
)
def loop_of_evaluation():
    data = [[n, n + 1] for n in range(4)]
    out: dict = {}
    model, moments = Doubler().train(), []
    callbacks = {
        m: (lambda m=m: moments.append(m)) for m in ("on_start", "before_inference", "after_inference", "on_end")
    }
    with log_lines() as lines, mock.patch("torch.cuda.is_available", return_value=False):
        one = Counter("one")
        out["one"] = d2.inference_on_dataset(model, data, one, callbacks)
        out["calls"] = [json.dumps(call) for call in one.calls]
        out["several"] = dict(d2.inference_on_dataset(model, data, [Counter("a"), Counter(""), Counter("b")]))
        out["none"] = d2.inference_on_dataset(lambda x: x, data, None)
        out["nothing"] = d2.inference_on_dataset(model, [], Counter(""))
    out["modes"] = [model.modes, model.training]
    out["moments"] = moments
    out["lines"] = [re.sub(r"[\d.:]+", "N", line) for line in lines if line.startswith("Total")][:2]
    model.eval()
    with d2.inference_context(model.train()):
        out["inside"] = model.training
    out["after"] = model.training
    base = d2.DatasetEvaluator()
    out["base"] = [base.reset() is None, base.process(1, 2) is None, base.evaluate() is None]
    out["merged"] = list(d2.DatasetEvaluators([Counter("b"), Counter("a")]).evaluate())
    out["errors"] = [error_of(lambda: d2.DatasetEvaluators([Counter("a"), Counter("a")]).evaluate())]
    return out


@case("print_csv_format", what="the lines")
def table_of_results():
    with log_lines() as lines:
        scores = {"AP": 12.34567, "AP-cat": 1.0, "APs": float("nan")}
        d2.print_csv_format({"bbox": scores, "accuracy": 0.25, "segm": {"AP": 3.0}})
        d2.print_csv_format({})
    return {"lines": lines}


def semantic_evaluator(name: str, at: Path):
    """Detectron2's own with Detectron2, ours otherwise: d2.py has neither."""
    if d2.PROVIDER == d2.UPSTREAM:
        return d2_module("evaluation").SemSegEvaluator(name, distributed=False, output_dir=str(at))
    from elsa_det.evaluation import SemanticEvaluator

    return SemanticEvaluator(name)


@case(
    "DatasetEvaluator",
    what="semantic scores of fixed predictions, with ignored pixels and a class that is not there",
    atol=1e-6,
)
def semantic():
    rng = np.random.default_rng(2)
    with folder() as at, registered("fid_sem"):
        records, pairs = [], []
        for number in range(3):
            truth = rng.integers(0, 4, (12, 15)).astype(np.uint8)
            found = np.where(rng.random((12, 15)) < 0.6, truth, rng.integers(0, 5, (12, 15)))
            truth[:2] = 255
            Image.fromarray(truth).save(at / f"{number}_truth.png")
            Image.fromarray(truth).save(at / f"{number}.png")
            records.append(
                {"file_name": str(at / f"{number}.png"), "sem_seg_file_name": str(at / f"{number}_truth.png")}
            )
            records[-1] |= {"height": 12, "width": 15}
            one_hot = torch.nn.functional.one_hot(torch.as_tensor(found), 5).permute(2, 0, 1).float()
            pairs.append((records[-1], {"sem_seg": one_hot}))
        d2.DatasetCatalog.register("fid_sem", lambda: records)
        d2.MetadataCatalog.get("fid_sem").set(stuff_classes=["a", "b", "c", "d", "e"], ignore_label=255)
        with log_lines():
            scores = evaluated(semantic_evaluator("fid_sem", at), pairs)["sem_seg"]
    return {"scores": {key: value for key, value in sorted(scores.items()) if "B" not in key}}  # IoU of borders
