"""Datasets: catalogs, files, the mapper, loaders."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator

import numpy as np
import torch
from d2_access import d2_module
from fidelity.cases_transforms import HEIGHT, WIDTH, annotation, image, labels
from fidelity.harness import case, condensed, digest, error_of, folder, log_lines, of_instances
from lvis_files import lvis_content
from PIL import Image

from elsa_det import d2

T = d2.transforms


@contextlib.contextmanager
def registered(*names: str) -> Iterator[None]:
    """Names of datasets that are forgotten afterwards."""
    try:
        yield
    finally:
        for name in names:
            for catalog in (d2.DatasetCatalog, d2.MetadataCatalog):
                if name in catalog.list():
                    catalog.remove(name)


@case("DatasetCatalog", "MetadataCatalog", what="registering, getting, listing, removing, metadata set once; errors")
def catalogs():
    catalog, metadata = d2.DatasetCatalog, d2.MetadataCatalog
    with registered("fid_a", "fid_b"):
        catalog.register("fid_a", lambda: [{"x": 1}])
        meta = metadata.get("fid_b").set(thing_classes=["a", "b"], root="r")
        meta.thing_classes = ["a", "b"]
        return {
            "data": catalog.get("fid_a"),
            "listed": ["fid_a" in catalog.list(), "fid_a" in catalog, "fid_b" in metadata.list()],
            "same": [metadata.get("fid_b") is meta, meta.set(other=3) is meta],
            "values": [meta.get("thing_classes"), meta.get("nothing", 5), meta.name, meta.other],
            "dict": sorted(meta.as_dict()),
            "old_name": meta.class_names,
            "text": [str(catalog).startswith("DatasetCatalog(registered datasets: "), "fid_b" in str(metadata)],
            "errors": [
                error_of(lambda: catalog.register("fid_a", list)),
                error_of(lambda: catalog.register("fid_c", 3)),
                error_of(lambda: catalog.get("fid_none")),
                error_of(lambda: setattr(meta, "root", "other")),
                error_of(lambda: meta.nothing),
                error_of(lambda: metadata.get("")),
                error_of(lambda: catalog.remove("fid_none")),
            ],
            "removed": [catalog.remove("fid_a") is None, "fid_a" in catalog.list()],
        }


def coco_content() -> dict:
    """Five images; among the objects a crowd, one without area, one with keypoints, one without a mask."""
    square = [[2.0, 2.0, 20.0, 2.0, 20.0, 15.0, 2.0, 15.0]]
    rle = {"size": [HEIGHT, WIDTH], "counts": [100, 30, HEIGHT * WIDTH - 130]}
    objects = [
        (1, 30, square, 0),
        (1, 10, square, 0),
        (2, 20, rle, 1),
        (3, 20, square, 0),
        (4, 10, [[1.0, 2, 3, 4]], 0),
    ]
    return {
        "images": [{"id": 9 - n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(5, 0, -1)],
        "categories": [{"id": i, "name": f"class {i}", "supercategory": "x"} for i in (30, 10, 20)],
        "annotations": [
            {
                "id": number + 50,
                "image_id": 9 - image_number,
                "category_id": category,
                "bbox": [2.0, 2.0, 18.0, 13.0 + number],
                "area": 234.0,
                "iscrowd": crowd,
                "segmentation": segmentation,
                "score_of_nobody": number,
                **({"keypoints": [3, 4, 2, 0, 0, 0, 7.5, 8, 1], "num_keypoints": 2} if number == 0 else {}),
            }
            for number, (image_number, category, segmentation, crowd) in enumerate(objects)
        ],
    }


@case(
    "load_coco_json",
    "register_coco_instances",
    "get_detection_dataset_dicts",
    what="records of every image, classes, ids, more keys, RLE; registering; images without usable objects; errors",
)
def coco_files():
    out: dict = {}
    with folder() as at, registered("fid_coco", "fid_more", "fid_empty"):
        path = at / "coco.json"
        path.write_text(json.dumps(coco_content()))
        plain = d2.load_coco_json(str(path), "root")
        named = d2.load_coco_json(str(path), "root", "fid_coco", extra_annotation_keys=["score_of_nobody"])
        meta = d2.MetadataCatalog.get("fid_coco")
        out["plain"] = [_record(each) for each in plain]
        out["named"] = [_record(each) for each in named]
        out["meta"] = [meta.thing_classes, sorted(meta.thing_dataset_id_to_contiguous_id.items())]
        d2.register_coco_instances("fid_more", {"remark": 3}, str(path), "images")
        more = d2.MetadataCatalog.get("fid_more")
        out["registered"] = [more.evaluator_type, more.image_root, more.remark, more.json_file == str(path)]
        with log_lines():
            for name, options in {
                "usable": {},
                "all": {"filter_empty": False},
                "twice": {"names": ["fid_more", "fid_more"], "check_consistency": False},
            }.items():
                got = d2.get_detection_dataset_dicts(**{"names": "fid_more"} | options)
                out[name] = [[each["image_id"], len(each["annotations"])] for each in got]
        d2.DatasetCatalog.register("fid_empty", list)
        out["errors"] = [
            error_of(lambda: d2.get_detection_dataset_dicts([])),
            error_of(lambda: d2.get_detection_dataset_dicts("fid_empty")),
            error_of(lambda: d2.get_detection_dataset_dicts("fid_unknown")),
            error_of(lambda: d2.load_coco_json(str(at / "none.json"), "root")),
        ]
    return out


def _record(record: dict) -> dict:
    """A record of a dataset, in plain values."""
    annotations = [
        {key: value.name if key == "bbox_mode" else value for key, value in sorted(each.items())}
        for each in record["annotations"]
    ]
    return dict(sorted(record.items())) | {"annotations": [json.dumps(each, default=str) for each in annotations]}


@case("load_lvis_json", "register_lvis_instances", what="records of every image, registering; a repeated id")
def lvis_files():
    with folder() as at, registered("fid_lvis"):
        content = lvis_content()
        path = at / "lvis.json"
        path.write_text(json.dumps(content))
        records = d2.load_lvis_json(str(path), "root/", extra_annotation_keys=["id"])
        d2.register_lvis_instances("fid_lvis", {"remark": 2}, str(path), "images")
        meta = d2.MetadataCatalog.get("fid_lvis")
        return {
            "records": [_record(each) for each in records],
            "meta": [meta.evaluator_type, meta.image_root, meta.remark, meta.json_file == str(path)],
            "listed": "fid_lvis" in d2.DatasetCatalog.list(),
            "error": error_of(lambda: d2.register_lvis_instances("fid_lvis", {}, "other", "images")),
        }


@case("DatasetFromList", what="items, lengths, negative indices, copies, own containers; errors")
def lists():
    items = [{"a": [n], "b": "x" * n} for n in range(4)]
    plain, shared = d2.DatasetFromList(items, serialize=False), d2.DatasetFromList(items)
    uncopied = d2.DatasetFromList(items, copy=False, serialize=False)
    own = d2.DatasetFromList(items, serialize=lambda lst: lst[::-1])
    return {
        "items": [str(each[n]) for each in (plain, shared, own) for n in range(4)],
        "lengths": [len(plain), len(shared), len(own)],
        "fresh": [plain[1] is items[1], uncopied[1] is items[1], shared[1] is shared[1], own[0] is items[3]],
        "errors": [error_of(lambda: d2.DatasetFromList(items, serialize="yes"))],
    }


@contextlib.contextmanager
def pictures() -> Iterator[list[dict]]:
    """Records of nine images in files, wide and tall by turns, with one or two objects each."""
    with folder() as at:
        records = []
        for number in range(9):
            pixels, labelled = image() + np.uint8(number), labels()
            if number % 3 == 1:
                pixels, labelled = pixels.transpose(1, 0, 2), labelled.T
            path, label_path = at / f"{number}.png", at / f"{number}_labels.png"
            Image.fromarray(np.ascontiguousarray(pixels)).save(path)
            Image.fromarray(np.ascontiguousarray(labelled)).save(label_path)
            height, width = labelled.shape
            objects = [annotation(), annotation(category_id=number % 3, iscrowd=int(number == 2))][
                : 1 + number % 2 + (number == 2)
            ]
            records.append(
                {"file_name": str(path), "height": height, "width": width, "image_id": number, "annotations": objects}
                | ({"sem_seg_file_name": str(label_path)} if number % 2 else {})
            )
        yield records


def _mapped(made: dict) -> dict:
    out: dict = {"keys": sorted(made), "image": condensed(made["image"].float()), "type": str(made["image"].dtype)}
    if "instances" in made:
        out["instances"] = of_instances(made["instances"])
    if "sem_seg" in made:
        out["sem_seg"] = digest(made["sem_seg"])
    return out


@case(
    "DatasetMapper",
    what="what is made of a record in training and testing: masks of both kinds, boxes from masks, label maps",
    rtol=1e-5,
    atol=1e-4,
)
def mapper():
    out: dict = {}
    chain = [
        T.RandomFlip(),
        T.ResizeShortestEdge((24, 40), sample_style="choice"),
        T.RandomCrop("relative", (0.8, 0.9)),
    ]
    with pictures() as records:
        for name, options in {
            "boxes": {},
            "polygons": {"use_instance_mask": True},
            "bitmaps": {"use_instance_mask": True, "instance_mask_format": "bitmask", "image_format": "RGB"},
            "recomputed": {"use_instance_mask": True, "recompute_boxes": True},
            "testing": {"is_train": False, "augmentations": [T.Resize((30, 20))]},
        }.items():
            made = d2.DatasetMapper(**{"is_train": True, "augmentations": chain, "image_format": "BGR"} | options)
            np.random.seed(3)
            out[name] = [_mapped(made(record)) for record in records[:4]]
        out["untouched"] = sorted(records[0])
        wrong = records[0] | {"height": 5}
        out["errors"] = [error_of(lambda: made(wrong)), error_of(lambda: made(records[0] | {"file_name": "none.png"}))]
        out["recompute_needs_masks"] = error_of(
            lambda: d2.DatasetMapper(True, augmentations=[], image_format="BGR", recompute_boxes=True)
        )
    return out


def number_of(record: dict) -> dict:
    """A mapper that draws: the record's number and shape, and a random number of every generator."""
    drawn = [float(np.random.rand()), float(torch.rand(()))]
    return {"image_id": record["image_id"], "width": record["width"], "height": record["height"], "drawn": drawn}


def _records(number: int = 12) -> list[dict]:
    return [{"image_id": n, "width": 10 + 2 * (n % 3), "height": 12} for n in range(number)]


@case(
    "build_detection_train_loader",
    "TrainingSampler",
    what="ids of the first batches, grouped by shape or not, with none, one and two workers, whose random numbers too",
)
def training_loader():
    out: dict = {}
    for name, options in {
        "grouped": {},
        "plain": {"aspect_ratio_grouping": False},
        "collated": {"collate_fn": len, "aspect_ratio_grouping": False},
        "collated_groups": {"collate_fn": len},
        "one_worker": {"num_workers": 1, "aspect_ratio_grouping": False},
        "two_workers": {"num_workers": 2, "aspect_ratio_grouping": False},
        "two_workers_grouped": {"num_workers": 2},
        "in_order": {"sampler": d2.TrainingSampler(12, shuffle=False), "aspect_ratio_grouping": False},
    }.items():
        np.random.seed(1)
        torch.manual_seed(2)
        sampler = {"sampler": d2.TrainingSampler(12, seed=9)} | options
        loader = d2.build_detection_train_loader(_records(), mapper=number_of, total_batch_size=3, seed=4, **sampler)
        batches = list(itertools.islice(iter(loader), 6))
        if "collate_fn" in options:
            out[name] = batches
            continue
        out[name] = [[item["image_id"] for item in batch] for batch in batches]
        if options.get("num_workers"):  # each worker has its seed; which of two is first does not matter
            out[f"{name}_drawn"] = [item["drawn"] for item in batches[0]]
    out["errors"] = [
        error_of(lambda: d2.build_detection_train_loader(_records(), mapper=None, total_batch_size=0)),
        error_of(lambda: d2.build_detection_train_loader(_records(), mapper=None, sampler=[1], total_batch_size=2)),
    ]
    return out


@case(
    "build_detection_test_loader",
    "InferenceSampler",
    what="batches of ids, of every size, from lists and datasets, with workers",
)
def testing_loader():
    out: dict = {}
    for name, options in {
        "usual": {},
        "three": {"batch_size": 3},
        "workers": {"batch_size": 2, "num_workers": 2},
        "collated": {"batch_size": 5, "collate_fn": len},
        "sampler": {"sampler": [3, 1, 3]},
    }.items():
        loader = d2.build_detection_test_loader(_records(7), mapper=number_of, **options)
        batches = list(loader)
        out[name] = [
            len(loader),
            batches if "collate_fn" in options else [[item["image_id"] for item in b] for b in batches],
        ]
    unmapped = d2.build_detection_test_loader(d2.DatasetFromList(_records(2)), mapper=None)
    return out | {"unmapped": [[sorted(item) for item in batch] for batch in unmapped]}


@case(
    "build_detection_train_loader", what="grouping by shape, streams, what the mapper drops, the share of each worker"
)
def datasets_of_datasets():
    common = d2_module("data.common")
    records = _records(10)
    groups = common.AspectRatioGroupedDataset(records, 2)
    dropped = common.MapDataset(list(range(12)), lambda n: None if n % 4 else n)
    stream = common.ToIterableDataset(records, d2.InferenceSampler(10))
    return {
        "groups": [[item["image_id"] for item in batch] for batch in groups],
        "dropped": [dropped[n] for n in (0, 1, 2, 3, 5, 9, 4)],
        "stream": [item["image_id"] for item in stream],
    }
