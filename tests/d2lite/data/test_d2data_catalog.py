"""The catalogs of datasets and their metadata."""

from __future__ import annotations

import pytest
from d2_access import d2_module

from elsa_det.d2 import DatasetCatalog, MetadataCatalog


@pytest.fixture
def name():
    yield "catalog_test_set"
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("catalog_test_set", None)


def test_dataset_is_loaded_when_it_is_asked_for(name):
    loads = []
    DatasetCatalog.register(name, lambda: loads.append(1) or [{"image_id": 7}])
    assert loads == []
    assert DatasetCatalog.get(name) == [{"image_id": 7}]
    assert name in DatasetCatalog
    assert name in DatasetCatalog.list()
    DatasetCatalog.remove(name)
    assert name not in DatasetCatalog


def test_registering_twice_or_nonsense_is_an_error(name):
    DatasetCatalog.register(name, list)
    with pytest.raises((ValueError, AssertionError), match="already registered"):
        DatasetCatalog.register(name, list)
    with pytest.raises((TypeError, AssertionError), match="function"):
        DatasetCatalog.register(name + "2", [1, 2])


def test_unknown_dataset_names_the_known_ones(name):
    DatasetCatalog.register(name, list)
    with pytest.raises(KeyError, match=rf"no_such_set.*{name}"):
        DatasetCatalog.get("no_such_set")


def test_metadata_is_set_once(name):
    meta = MetadataCatalog.get(name)
    assert meta is MetadataCatalog.get(name)
    assert meta.name == name
    assert meta.set(thing_classes=["a", "b"], year=2017) is meta
    meta.thing_classes = ["a", "b"]
    with pytest.raises((ValueError, AssertionError), match=rf"thing_classes.*{name}"):
        meta.thing_classes = ["b", "a"]
    assert meta.thing_classes == ["a", "b"]
    assert meta.get("year") == 2017
    assert meta.get("month", 5) == 5
    assert meta.as_dict() == {"name": name, "thing_classes": ["a", "b"], "year": 2017}


def test_missing_metadata_says_what_there_is(name):
    meta = MetadataCatalog.get(name)
    with pytest.raises(AttributeError, match=rf"stuff_classes.*{name}.*empty"):
        _ = meta.stuff_classes
    meta.thing_classes = ["a"]
    with pytest.raises(AttributeError, match=rf"stuff_classes.*{name}.*thing_classes"):
        _ = meta.stuff_classes
    assert not hasattr(meta, "stuff_classes")
    assert meta.class_names == ["a"]  # the name of long ago


def test_builtin_coco():
    assert {"coco_2017_train", "coco_2017_val", "coco_2017_val_100", "coco_2017_test-dev"} <= set(DatasetCatalog.list())
    meta = MetadataCatalog.get("coco_2017_val")
    assert meta.evaluator_type == "coco"
    assert meta.json_file.endswith("coco/annotations/instances_val2017.json")
    assert meta.image_root.endswith("coco/val2017")
    assert len(meta.thing_classes) == len(meta.thing_colors) == 80
    things = zip(meta.thing_classes, meta.thing_dataset_id_to_contiguous_id.items(), meta.thing_colors)
    listed = list(things)
    assert listed[0] == ("person", (1, 0), [220, 20, 60])
    assert listed[11] == ("stop sign", (13, 11), [220, 220, 0])
    assert listed[79] == ("toothbrush", (90, 79), [191, 162, 208])


def test_public_names():
    data = d2_module("data")
    for name in ("DatasetFromList", "MapDataset", "ToIterableDataset", "Metadata", "build_batch_data_loader"):
        assert hasattr(data, name)
    assert data.DatasetCatalog is DatasetCatalog
