"""Reading COCO files, writing them, and what happens with bad ones."""

from __future__ import annotations

import json
import logging

import pytest
from d2_access import d2_module

from elsa_det import d2
from elsa_det.d2 import BoxMode, DatasetCatalog, MetadataCatalog, load_coco_json, register_coco_instances

datasets = d2_module("data.datasets")
coco_module = d2_module("data.datasets.coco")
lite_only = pytest.mark.skipif(d2.PROVIDER == d2.UPSTREAM, reason="messages of d2lite")

TRIANGLE = [0.0, 0.0, 4.0, 0.0, 0.0, 3.0]


def annotation(number, image_id, **changes):
    ann = {"id": number, "image_id": image_id, "category_id": 9, "bbox": [0, 0, 4, 3], "area": 6, "iscrowd": 0}
    return {**ann, "segmentation": [TRIANGLE], **changes}


def content():
    return {
        "images": [
            {"id": 30, "file_name": "b.png", "height": 4, "width": 6},
            {"id": 2, "file_name": "sub/a.png", "height": 5, "width": 5},
        ],
        "categories": [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}],
        "annotations": [
            annotation(1, 30),
            annotation(2, 30, category_id=4, segmentation=[TRIANGLE, [1, 1, 2, 2]]),
            annotation(3, 30, segmentation=[[1, 1, 2, 2]]),
            annotation(4, 30, iscrowd=1, segmentation={"size": [4, 6], "counts": [4, 8, 12]}),
            annotation(5, 30, segmentation=[], score=0.5),
        ],
    }


@pytest.fixture
def write(tmp_path):
    def writer(data, name="ann.json"):
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return str(path)

    return writer


@pytest.fixture
def name():
    yield "tiny_set"
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("tiny_set", None)


def test_load(write, name, caplog):
    with caplog.at_level(logging.WARNING):
        first, second = load_coco_json(write(content()), "root", name)
    assert first == {"file_name": "root/sub/a.png", "height": 5, "width": 5, "image_id": 2, "annotations": []}
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == ["four", "nine"]
    assert meta.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}
    # the third object has no polygon of three points
    assert [obj["category_id"] for obj in second["annotations"]] == [1, 0, 1, 1]
    assert [obj["iscrowd"] for obj in second["annotations"]] == [0, 0, 1, 0]
    assert all(obj["bbox_mode"] == BoxMode.XYWH_ABS and obj["bbox"] == [0, 0, 4, 3] for obj in second["annotations"])
    assert second["annotations"][1]["segmentation"] == [TRIANGLE]
    assert second["annotations"][2]["segmentation"] == {"size": [4, 6], "counts": b"48<"}
    assert "segmentation" not in second["annotations"][3]
    assert len(caplog.records) == 2  # ids with gaps, an object left out


def test_load_without_name_keeps_ids(write):
    _, second = load_coco_json(write(content()), "root", extra_annotation_keys=["score", "id"])
    assert [obj["category_id"] for obj in second["annotations"]] == [9, 4, 9, 9]
    assert [obj["id"] for obj in second["annotations"]] == [1, 2, 4, 5]
    assert [obj.get("score") for obj in second["annotations"]] == [None, None, None, 0.5]


def test_test_sets_have_no_annotations(write, name):
    data = content()
    del data["annotations"]
    assert [image["annotations"] for image in load_coco_json(write(data), "root", name)] == [[], []]


def test_annotations_of_unknown_images_are_counted(write, name, caplog):
    data = content()
    data["annotations"].append(annotation(6, 77))
    with caplog.at_level(logging.WARNING):
        images = load_coco_json(write(data), "root", name)
    assert len(images) == 2
    assert any("6 annotations" in r.getMessage() or "1 of 6" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"bbox": []}, ValueError),
        ({"ignore": 1}, (ValueError, AssertionError)),
        ({"category_id": 5}, KeyError),
        ({"id": 1}, (ValueError, AssertionError)),
    ],
)
def test_bad_annotations(write, name, change, error):
    data = content()
    data["annotations"].append(annotation(6, 30, **change))
    with pytest.raises(error):
        load_coco_json(write(data), "root", name)


def test_repeated_ids_are_known_of_minival(write, name):
    data = content()
    data["annotations"].append(annotation(1, 30))
    assert len(load_coco_json(write(data, "minival.json"), "root", name)[1]["annotations"]) == 5


@lite_only
@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ("{nonsense", ValueError, "not a JSON file"),
        ([{"image_id": 1, "score": 0.5}], ValueError, "not in COCO format.*list"),
        ({"shapes": []}, ValueError, "no list 'images'.*shapes"),
        ({"images": [], "annotations": []}, ValueError, "no list 'categories'"),
        ({"images": [], "annotations": [], "categories": []}, ValueError, "no classes"),
        ({"images": [{"file_name": "a"}], "categories": []}, ValueError, "'images' has an entry without 'id'"),
        ({**content(), "annotations": [{"id": 1}]}, ValueError, "no 'image_id'"),
        ({**content(), "images": [{"id": 1, "file_name": "a", "width": 3}]}, ValueError, "image 1 has no 'height'"),
    ],
)
def test_files_that_are_not_coco(write, name, data, error, words):
    with pytest.raises(error, match=words) as caught:
        load_coco_json(write(data), "root", name)
    assert "ann.json" in str(caught.value)
    assert name in str(caught.value)


def test_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"no\.json") as caught:
        load_coco_json(str(tmp_path / "no.json"), "root", name)
    if d2.PROVIDER == d2.LITE:
        assert name in str(caught.value)
        assert "DETECTRON2_DATASETS" in str(caught.value)


def test_register(write, name):
    path = write(content())
    register_coco_instances(name, {"thing_colors": [[1, 2, 3], [4, 5, 6]]}, path, "root")
    register_coco_instances(name, {}, path, "root")  # again the same: nothing to object to
    meta = MetadataCatalog.get(name)
    assert (meta.json_file, meta.image_root, meta.evaluator_type) == (path, "root", "coco")
    assert len(DatasetCatalog.get(name)) == 2
    with pytest.raises((ValueError, AssertionError), match="json_file"):
        register_coco_instances(name, {}, path + "2", "root")
    with pytest.raises((TypeError, AssertionError)):
        register_coco_instances(name, {}, None, "root")


def test_convert_and_back(write, name, tmp_path):
    register_coco_instances(name, {}, write(content()), "root")
    out = str(tmp_path / "new" / "coco.json")
    datasets.convert_to_coco_json(name, out)
    with open(out) as file:
        coco = json.load(file)
    assert coco["categories"] == [{"id": 4, "name": "four"}, {"id": 9, "name": "nine"}]
    assert [image["id"] for image in coco["images"]] == [2, 30]
    assert [ann["id"] for ann in coco["annotations"]] == [1, 2, 3, 4]
    assert [ann["category_id"] for ann in coco["annotations"]] == [9, 4, 9, 9]
    assert [ann["area"] for ann in coco["annotations"]] == [6, 6, 8, 12]  # triangle, triangle, RLE, box
    assert coco["annotations"][2]["segmentation"] == {"size": [4, 6], "counts": "48<"}
    assert coco["annotations"][0]["bbox"] == [0, 0, 4, 3]

    again = load_coco_json(out, "", name)
    assert [len(image["annotations"]) for image in again] == [0, 4]
    with open(out, "w") as file:
        file.write("kept")
    datasets.convert_to_coco_json(name, out)
    with open(out) as file:
        assert file.read() == "kept"
    datasets.convert_to_coco_json(name, out, allow_cached=False)
    with open(out) as file:
        assert json.load(file)["annotations"] == coco["annotations"]


def test_convert_without_objects(name):
    DatasetCatalog.register(name, lambda: [{"file_name": "x.png", "height": 3, "width": 4, "image_id": 5}])
    MetadataCatalog.get(name).thing_classes = ["thing"]
    coco = coco_module.convert_to_coco_dict(name)
    assert coco["images"] == [{"id": 5, "width": 4, "height": 3, "file_name": "x.png"}]
    assert coco["categories"] == [{"id": 0, "name": "thing"}]
    assert "annotations" not in coco


def test_sem_seg_pairs_by_name(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for folder, names in ((images, ["b.jpg", "a.jpg", "c.jpg", "x.txt"]), (labels, ["a.png", "b.png"])):
        folder.mkdir()
        for file in names:
            (folder / file).touch()
    pairs = datasets.load_sem_seg(str(labels), str(images))
    assert pairs == [
        {"file_name": str(images / f"{stem}.jpg"), "sem_seg_file_name": str(labels / f"{stem}.png")} for stem in "ab"
    ]
    with pytest.raises(FileNotFoundError):
        datasets.load_sem_seg(str(tmp_path / "none"), str(images))
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, AssertionError), match="empty"):
        datasets.load_sem_seg(str(tmp_path / "empty"), str(images))
