"""Reading LVIS files under their registered names, and what happens with bad ones."""

from __future__ import annotations

import pytest
from lvis_files import annotation, lvis_content, needs_lvis, write_lvis

from elsa_det import d2
from elsa_det.d2 import BoxMode, DatasetCatalog, MetadataCatalog, load_lvis_json, register_lvis_instances

lite_only = pytest.mark.skipif(d2.PROVIDER == d2.UPSTREAM, reason="Detectron2 knows the classes of LVIS itself only")


@pytest.fixture
def name():
    yield "tiny_lvis"
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("tiny_lvis", None)


@needs_lvis
def test_load(tmp_path):
    images = load_lvis_json(write_lvis(tmp_path), "images/", extra_annotation_keys=["id"])
    assert [image["image_id"] for image in images] == [11, 12, 13, 14]
    first = images[0]
    assert first["file_name"] == "images/train2017/000000000011.jpg"
    assert images[1]["file_name"] == "images/val2017/000000000012.jpg"
    assert (first["height"], first["width"]) == (200, 200)
    assert (first["neg_category_ids"], first["not_exhaustive_category_ids"]) == ([2], [1])
    assert first["annotations"] == [
        {
            "bbox": [0, 0, 100, 100],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "segmentation": [[0, 0, 100, 0, 100, 100, 0, 100]],
            "id": 1,
        },
        {
            "bbox": [120, 120, 20, 20],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 2,
            "segmentation": [[120, 120, 140, 120, 140, 140, 120, 140]],
            "id": 2,
        },
    ]
    assert images[3]["annotations"] == []


@needs_lvis
def test_absent_lists_are_empty(tmp_path):
    content = lvis_content()
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    first = load_lvis_json(write_lvis(tmp_path, content), "")[0]
    assert (first["neg_category_ids"], first["not_exhaustive_category_ids"]) == ([], [])


@needs_lvis
def test_bad_annotations(tmp_path):
    errors = (AssertionError, ValueError, KeyError)
    for change in ({"id": 1}, {"segmentation": [[0, 0, 1, 1]]}, {"segmentation": []}):
        content = lvis_content()
        content["annotations"].append({**annotation(9, 14, 1, (0, 0, 9, 9)), **change})
        with pytest.raises(errors):
            load_lvis_json(write_lvis(tmp_path, content), "")
    with pytest.raises(errors):
        load_lvis_json(write_lvis(tmp_path), "", extra_annotation_keys=["nothing"])


def test_builtin_splits_are_registered():
    for split, json_file in (
        ("lvis_v1_train", "lvis/lvis_v1_train.json"),
        ("lvis_v1_val", "lvis/lvis_v1_val.json"),
        ("lvis_v1_test_dev", "lvis/lvis_v1_image_info_test_dev.json"),
        ("lvis_v0.5_val_rand_100", "lvis/lvis_v0.5_val_rand_100.json"),
        ("lvis_v0.5_val_cocofied", "lvis/lvis_v0.5_val_cocofied.json"),
    ):
        meta = MetadataCatalog.get(split)
        assert split in DatasetCatalog.list()
        assert meta.json_file.endswith(json_file)
        assert meta.image_root.endswith("coco/")
        assert meta.evaluator_type == "lvis"


@needs_lvis
def test_registering(tmp_path, name):
    register_lvis_instances(name, {"remark": "small"}, write_lvis(tmp_path), "images/")
    meta = MetadataCatalog.get(name)
    assert (meta.remark, meta.evaluator_type, meta.image_root) == ("small", "lvis", "images/")
    with pytest.raises((AssertionError, ValueError)):
        register_lvis_instances(name, {}, "other.json", "images/")
    if d2.PROVIDER == d2.LITE:
        assert len(DatasetCatalog.get(name)) == 4
        assert meta.thing_classes == ["apple", "bow_(weapon)", "cup", "duck"]
        assert not hasattr(meta, "thing_dataset_id_to_contiguous_id")


@lite_only
def test_classes_with_gaps_are_mapped(tmp_path, name):
    content = lvis_content()
    content["categories"] = [{"id": number, "name": f"class {number}"} for number in (40, 1, 2, 3)]
    content["annotations"].append(annotation(9, 14, 40, (0, 0, 9, 9)))
    assert load_lvis_json(write_lvis(tmp_path, content), "", name)[3]["annotations"][0]["category_id"] == 3
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == ["class 1", "class 2", "class 3", "class 40"]
    assert meta.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2, 40: 3}


@lite_only
def test_images_without_url_go_by_file_name(tmp_path):
    content = lvis_content()
    for image in content["images"]:
        del image["coco_url"]
        image["file_name"] = f"sub/{image['id']}.jpg"
    assert load_lvis_json(write_lvis(tmp_path, content), "root")[0]["file_name"] == "root/sub/11.jpg"


@lite_only
def test_messages(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"LVIS annotations '.*' of dataset 'tiny_lvis' do not exist.*lvis_v1_"):
        load_lvis_json(tmp_path / "gone.json", "", name)
    with pytest.raises(ValueError, match="not in LVIS format: there is no list 'categories'"):
        load_lvis_json(write_lvis(tmp_path, {"images": []}), "", name)
    with pytest.raises(ValueError, match="the list 'categories' is empty"):
        load_lvis_json(write_lvis(tmp_path, lvis_content(categories=[])), "", name)
    content = lvis_content()
    content["annotations"][3]["segmentation"] = [[0, 0, 1, 1], [0, 0, 4, 0, 4, 4]]
    with pytest.raises(ValueError, match="annotation 4 of image 12 has no segmentation, or a polygon of fewer"):
        load_lvis_json(write_lvis(tmp_path, content), "")
    content = lvis_content()
    content["annotations"][3]["category_id"] = 77
    with pytest.raises(KeyError, match="annotation 4 of image 12 has category_id=77, which is not among 'categories'"):
        load_lvis_json(write_lvis(tmp_path, content), "", name)
    with pytest.raises(KeyError, match="annotation 1 of image 11 has no 'score', which was asked for"):
        load_lvis_json(write_lvis(tmp_path), "", extra_annotation_keys=["score"])
    content = lvis_content()
    del content["images"][0]["coco_url"]
    with pytest.raises(ValueError, match="image 14 has neither 'coco_url' nor 'file_name'"):
        load_lvis_json(write_lvis(tmp_path, content), "")
    content = lvis_content(categories=[{"id": 1}])
    with pytest.raises(ValueError, match="category 1 has neither 'synonyms' nor 'name'"):
        load_lvis_json(write_lvis(tmp_path, content), "", name)
