from __future__ import annotations

import copy
import pickle

import pytest
import torch

from elsa_det.d2 import BitMasks, Boxes, Instances


def _three() -> Instances:
    return Instances(
        (10, 20),
        gt_boxes=Boxes([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]]),
        scores=torch.tensor([0.5, 0.25, 0.125]),
        names=["a", "b", "c"],
    )


def test_fields():
    instances = _three()
    instances.classes = torch.tensor([7, 8, 9])
    assert len(instances) == 3
    assert instances.image_size == (10, 20)
    assert instances.has("classes")
    assert "classes" in instances.get_fields()
    assert instances.get("classes").tolist() == [7, 8, 9]
    instances.remove("classes")
    assert not instances.has("classes")
    assert list(instances.get_fields()) == ["gt_boxes", "scores", "names"]
    with pytest.raises(AttributeError, match="classes"):
        _ = instances.classes
    with pytest.raises(KeyError):
        instances.get("classes")


def test_a_field_of_another_length_is_refused():
    with pytest.raises((ValueError, AssertionError), match=r"2.*3"):
        _three().classes = torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("index", "names"),
    [
        (0, "a"),
        (2, "c"),
        (-1, "c"),
        (-3, "a"),
        (slice(1, None), "bc"),
        (slice(0, 0), ""),
    ],
)
def test_rows(index, names):
    taken = _three()[index]
    assert "".join(taken.names) == names
    assert len(taken) == len(names) == len(taken.gt_boxes)
    assert taken.image_size == (10, 20)


def test_rows_by_tensor():
    instances = _three()
    instances.remove("names")
    assert instances[instances.scores > 0.2].gt_boxes.area().tolist() == [1, 4]
    assert instances[torch.tensor([2, 0])].scores.tolist() == [0.125, 0.5]
    assert len(instances[instances.scores > 2]) == 0


@pytest.mark.parametrize("index", [3, -4])
def test_a_row_that_is_not_there(index):
    with pytest.raises(IndexError):
        _three()[index]


def test_no_fields_no_length_and_no_iteration():
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))
    with pytest.raises(NotImplementedError):
        iter(_three())


def test_cat():
    first, second = _three(), _three()[1:]
    together = Instances.cat([first, second])
    assert together.names == ["a", "b", "c", "b", "c"]
    assert together.scores.tolist() == [0.5, 0.25, 0.125, 0.25, 0.125]
    assert together.gt_boxes.area().tolist() == [1, 4, 9, 4, 9]
    assert Instances.cat([first]) is first


def test_cat_refuses_what_does_not_belong_together():
    with pytest.raises((ValueError, AssertionError)):
        Instances.cat([])
    with pytest.raises((ValueError, AssertionError)):
        Instances.cat([Instances((1, 2), a=[1]), Instances((2, 1), a=[1])])
    with pytest.raises(ValueError, match="range"):
        Instances.cat([Instances((1, 2), a=range(1)), Instances((1, 2), a=range(1))])


def test_to_moves_what_can_be_moved():
    moved = _three().to("cpu")
    assert moved.names == ["a", "b", "c"]
    assert moved.gt_boxes.device == torch.device("cpu")
    masks = Instances((2, 2), masks=BitMasks(torch.ones(1, 2, 2)), scores=torch.ones(1))
    assert masks.to(torch.device("cpu")).masks.tensor.sum() == 4


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(duplicate):
    again = duplicate(_three())
    assert str(again) == str(_three())
    assert again.image_size == (10, 20)


def test_str_names_size_and_fields():
    assert str(Instances((4, 5), scores=torch.ones(2))) == (
        "Instances(num_instances=2, image_height=4, image_width=5, fields=[scores: tensor([1., 1.])])"
    )
