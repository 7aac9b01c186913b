"""The order of training data: the same for any number of workers, and gone on with in its midst."""

from __future__ import annotations

import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import RepeatFactorTrainingSampler, build_detection_train_loader
from elsa_det.data import build_copy_paste_train_loader
from elsa_det.engine.data_order import ResumableLoader, make_train_loader
from elsa_det.errors import UserError

WIDE = [0, 2, 3, 7]


def entries(count=9):
    return [{"image_id": i, "width": 20 if i in WIDE else 10, "height": 15} for i in range(count)]


class Mapper:
    """Adds random numbers of all three kinds; takes no image of some."""

    def __init__(self, refused=()):
        self.refused = refused

    def __call__(self, entry):
        if entry["image_id"] in self.refused:
            return None
        return entry | {"drawn": (random.random(), np.random.rand(), torch.rand(1).item())}


class Items(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, index):
        return entries()[index]


def config(dataset=entries, **options):
    options = {"total_batch_size": 2, "num_workers": 0, **options}
    return L(build_detection_train_loader)(dataset=L(dataset)(), mapper=L(Mapper)(), **options)


def make(cfg, seed=5):
    np.random.seed(1)  # from which a sampler draws its seed
    loader, reason = make_train_loader(cfg, seed=seed)
    assert reason is None
    assert isinstance(loader, ResumableLoader)
    return loader


def take(loader, count):
    return list(islice(iter(loader), count))


@pytest.mark.parametrize("grouped", [True, False])
def test_going_on_with_any_number_of_workers(grouped):
    cfg = config(aspect_ratio_grouping=grouped)
    whole = make(cfg)
    batches = take(whole, 20)
    ids = [entry["image_id"] for batch in batches for entry in batch]
    if grouped:
        assert all(len({entry["width"] for entry in batch}) == 1 for batch in batches)
    else:
        assert sorted(ids[:9]) == list(range(9))
    assert len({entry["drawn"] for batch in batches for entry in batch}) == 40
    first = make(cfg)
    assert take(first, 7) == batches[:7]
    state = first.state_dict()
    assert state["batches"] == 7
    for workers in (0, 2):
        np.random.seed(2)
        on, _ = make_train_loader(config(aspect_ratio_grouping=grouped, num_workers=workers), seed=-1)
        assert on.load_state_dict(state) == []
        assert take(on, 4) == batches[7:11]
        assert on.state_dict() == {**state, "batches": 11}


def test_the_random_numbers_of_the_training_are_left_alone():
    loader = make(config())
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    take(loader, 3)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_what_the_mapper_does_not_take_is_replaced_the_same_way():
    cfg = config()
    cfg.mapper = L(Mapper)(refused=[1, 4])
    batches = take(make(cfg), 10)
    assert {entry["image_id"] for batch in batches for entry in batch}.isdisjoint({1, 4})
    loader = make(cfg)
    loader.load_state_dict({**loader.state_dict(), "batches": 6})
    assert take(loader, 4) == batches[6:]
    cfg.mapper = L(Mapper)(refused=list(range(9)))
    with pytest.raises(UserError, match="the mapper gave None for 100 images"):
        take(make(cfg), 1)


def test_other_samplers():
    cfg = config(sampler=L(RepeatFactorTrainingSampler)(repeat_factors=L(factors)()))
    batches = take(make(cfg), 12)
    first = make(cfg)
    take(first, 5)
    on, _ = make_train_loader(cfg, seed=5)  # whose seed is another one
    assert on.load_state_dict(first.state_dict()) == []
    assert take(on, 7) == batches[5:]


def test_what_differs_is_said():
    state = make(config()).state_dict() | {"batches": 6}
    on = make(config(total_batch_size=3))
    assert on.load_state_dict(state | {"images": 8}) == [
        "images in the dataset: 8 before, 9 now",
        "images in a batch of a process: 2 before, 3 now",
    ]
    assert on.state_dict()["batches"] == 4  # as many images


class TestLoadersThatCannotGoOn:
    def check(self, cfg, reason):
        loader, said = make_train_loader(cfg, seed=5)
        assert not isinstance(loader, ResumableLoader)
        assert reason in said
        return loader

    def test_sizes_that_are_not_known(self):
        self.check(config(some_without_size), "1 of 2 images have no width and height")

    def test_a_dataset_that_reads_images(self):
        loader = self.check(config(Items), "images of a Items cannot be grouped by aspect ratio before they are read")
        assert len(take(loader, 1)[0]) == 2
        assert isinstance(make(config(Items, aspect_ratio_grouping=False)), ResumableLoader)

    def test_a_loader_of_ones_own(self):
        self.check(L(own_loader)(), "own_loader")


def some_without_size():
    return [{"image_id": 0, "width": 3, "height": 3}, {"image_id": 1}]


def factors():
    return torch.full((9,), 1.5)


def own_loader():
    return [[1], [2]]


def test_copy_paste_draws_the_same_partners(monkeypatch):
    class Paste:
        def __init__(self, mapper, options):
            assert options.prob == 0.5
            self.mapper = mapper

        def __call__(self, pair):
            return pair | {"drawn": np.random.rand()}

    monkeypatch.setattr("elsa_det.engine.data_order.CopyPasteMapper", Paste)
    cfg = config(copy_paste={"prob": 0.5})
    cfg._target_ = build_copy_paste_train_loader
    batches = take(make(cfg), 8)
    partners = [entry["copy_paste_from"]["image_id"] for batch in batches for entry in batch]
    assert len(set(partners)) > 3
    loader = make(cfg)
    loader.load_state_dict({**loader.state_dict(), "batches": 3})
    assert take(loader, 5) == batches[3:]
