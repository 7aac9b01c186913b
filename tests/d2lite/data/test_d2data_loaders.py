"""Datasets that wrap datasets, and loaders."""

from __future__ import annotations

import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from d2_access import d2_module
from torch.utils.data import IterableDataset

from elsa_det import d2
from elsa_det.d2 import (
    DatasetCatalog,
    MetadataCatalog,
    TrainingSampler,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    seed_all_rng,
)

data = d2_module("data")
common = d2_module("data.common")
build = d2_module("data.build")

WIDTHS = [20, 5, 20, 20, 5, 5, 20, 5]
DICTS = [{"image_id": i, "width": w, "height": 10} for i, w in enumerate(WIDTHS)]


def identity(record):
    return record


def with_noise(record):
    return {**record, "noise": float(np.random.rand())}


def ids(batches):
    return [[record["image_id"] for record in batch] for batch in batches]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(6))


@pytest.fixture
def register():
    names = []

    def add(name, dicts, classes=("a", "b")):
        names.append(name)
        DatasetCatalog.register(name, lambda: dicts)
        if classes:
            MetadataCatalog.get(name).thing_classes = list(classes)
        return name

    yield add
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def image(*categories, crowd=False):
    return {"file_name": "x", "annotations": [{"category_id": c, "iscrowd": int(crowd)} for c in categories]}


@pytest.mark.parametrize("serialize", [True, False])
def test_dataset_from_list(serialize):
    items = [{"a": [i]} for i in range(4)]
    dataset = data.DatasetFromList(items, serialize=serialize)
    assert len(dataset) == 4
    assert [dataset[i] for i in range(4)] == items
    dataset[2]["a"].append(5)
    assert dataset[2] == {"a": [2]}
    with pytest.raises(TypeError):
        data.DatasetFromList(items, serialize="yes")


def test_map_dataset_falls_back_at_random():
    multiples_of_three = data.MapDataset(list(range(10)), lambda x: None if x % 3 else x)
    assert len(multiples_of_three) == 10
    assert [multiples_of_three[i] for i in (0, 1, 2, 3, 4, 5)] == [0, 0, 6, 3, 3, 3]  # recorded from Detectron2
    assert list(data.MapDataset(Stream(), lambda x: None if x % 3 else x)) == [0, 3]


@pytest.mark.skipif(d2.PROVIDER == d2.UPSTREAM, reason="upstream fails in random.sample")
def test_map_dataset_without_anything_usable():
    with pytest.raises(RuntimeError, match="every one of the 3 items"):
        data.MapDataset([1, 2, 3], lambda x: None)[0]


def test_map_dataset_can_be_pickled():
    dataset = pickle.loads(pickle.dumps(data.MapDataset(data.DatasetFromList(DICTS), identity)))
    assert dataset[3] == DICTS[3]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_workers_share_the_indices(monkeypatch, chunk):
    sampler = TrainingSampler(100, shuffle=False)
    shares = []
    for worker in range(3):
        info = type("Info", (), {"id": worker, "num_workers": 3})
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda info=info: info)
        if d2.PROVIDER == d2.LITE:
            monkeypatch.setattr(common, "get_worker_info", lambda info=info: info)
        stream = data.ToIterableDataset(list(range(100)), sampler, shard_chunk_size=chunk)
        shares.append(list(islice(iter(stream), 5)))
    expected = {
        1: [[0, 3, 6, 9, 12], [1, 4, 7, 10, 13], [2, 5, 8, 11, 14]],
        2: [[0, 1, 6, 7, 12], [2, 3, 8, 9, 14], [4, 5, 10, 11, 16]],
        3: [[0, 1, 2, 9, 10], [3, 4, 5, 12, 13], [6, 7, 8, 15, 16]],
    }
    assert shares == expected[chunk]


def test_grouping_by_aspect_ratio():
    loader = common.AspectRatioGroupedDataset(DICTS, 3)
    assert ids(loader) == [[0, 2, 3], [1, 4, 5]]
    assert ids(loader) == [[6, 0, 2], [7, 1, 4]]  # what was left over comes first


@pytest.mark.parametrize("workers", [0, 2])
def test_train_loader(workers):
    options = {"mapper": identity, "total_batch_size": 2, "num_workers": workers}
    sampler = TrainingSampler(8, seed=1)
    loader = build_detection_train_loader(DICTS, sampler=sampler, aspect_ratio_grouping=False, **options)
    order = list(islice(iter(TrainingSampler(8, seed=1)), 8))
    assert ids(islice(loader, 4)) == [order[i : i + 2] for i in (0, 2, 4, 6)]
    grouped = build_detection_train_loader(DICTS, sampler=sampler, **options)
    for batch in islice(grouped, 5):
        assert len(batch) == 2
        assert len({record["width"] for record in batch}) == 1


def test_same_seed_same_batches_with_workers():
    def batches():
        seed_all_rng(3)
        loader = build_detection_train_loader(DICTS, mapper=with_noise, total_batch_size=2, num_workers=2)
        return [record for batch in islice(loader, 4) for record in batch]

    first = batches()
    assert first == batches()
    assert len({record["noise"] for record in first}) == 8, "workers draw their own random numbers"


def test_collate_and_stream():
    loader = build_detection_train_loader(
        DICTS, mapper=identity, total_batch_size=2, collate_fn=len, aspect_ratio_grouping=True
    )
    assert next(iter(loader)) == 2
    stream = build_detection_train_loader(Stream(), mapper=None, total_batch_size=4, aspect_ratio_grouping=False)
    assert list(stream) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("workers", [0, 2])
def test_test_loader_gives_all_once(workers):
    loader = build_detection_test_loader(DICTS, mapper=identity, batch_size=3, num_workers=workers)
    assert ids(loader) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert len(build_detection_test_loader(DICTS, mapper=identity)) == 8


def test_batch_size_must_divide(monkeypatch):
    monkeypatch.setattr(build, "get_world_size", lambda: 3)
    with pytest.raises((ValueError, AssertionError), match=r"4.*3"):
        build_detection_train_loader(DICTS, mapper=identity, total_batch_size=4)
    loader = build_detection_train_loader(DICTS, mapper=identity, total_batch_size=6, aspect_ratio_grouping=False)
    assert len(next(iter(loader))) == 2
    alone = data.build_batch_data_loader(DICTS, TrainingSampler(8), 0, single_gpu_batch_size=3)
    assert len(next(iter(alone))) == 3


def test_contradicting_arguments():
    sampler = TrainingSampler(8)
    for bad in (
        lambda: data.build_batch_data_loader(DICTS, sampler, 2, single_gpu_batch_size=2),
        lambda: data.build_batch_data_loader(DICTS, None, 2),
        lambda: data.build_batch_data_loader(Stream(), sampler, 2),
        lambda: data.build_batch_data_loader(DICTS, sampler, 2, aspect_ratio_grouping=True, drop_last=False),
        lambda: build_detection_train_loader(DICTS, mapper=None, sampler=[0, 1], total_batch_size=2),
        lambda: build_detection_test_loader(Stream(), mapper=None, sampler=sampler),
    ):
        with pytest.raises((ValueError, TypeError, AssertionError)):
            bad()


def test_dataset_dicts_by_name(register, caplog):
    one = register("set_one", [image(0), image(), image(1, crowd=True)])
    two = register("set_two", [image(1, 1)])
    with caplog.at_level("INFO"):
        dicts = get_detection_dataset_dicts([one, two])
    assert [len(d["annotations"]) for d in dicts] == [1, 2]
    log = caplog.text.replace(" ", "")
    assert "|a|1|b|2|" in log
    assert "|total|3|" in log
    assert len(get_detection_dataset_dicts(one, filter_empty=False)) == 3


def test_dataset_dicts_that_cannot_be_used(register):
    one = register("set_one", [image(0)])
    with pytest.raises(KeyError, match=r"no_set.*set_one"):
        get_detection_dataset_dicts("no_set")
    for bad in ([], register("no_images", []), register("no_objects", [image()])):
        with pytest.raises((ValueError, AssertionError)):
            get_detection_dataset_dicts(bad)
    with pytest.raises(ValueError, match="thing_classes"):
        get_detection_dataset_dicts([one, register("other_classes", [image(0)], classes="xy")])
    with pytest.raises((ValueError, AssertionError), match="category_id=2"):
        get_detection_dataset_dicts(register("bad_id", [image(2)]))
    assert len(get_detection_dataset_dicts(register("no_classes", [image(7)], classes=None))) == 1


def test_label_maps_need_no_annotations(register):
    dicts = [{"file_name": "a", "sem_seg_file_name": "b"}]
    assert get_detection_dataset_dicts(register("label_maps", dicts, classes=None)) == dicts
