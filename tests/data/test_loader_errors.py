"""Errors of data loading name the image: a mapper that fails, and a worker that is killed, crashes or leaves."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from omegaconf import OmegaConf

from elsa_det.d2 import LazyCall, build_detection_test_loader, build_detection_train_loader, instantiate
from elsa_det.data import build_copy_paste_train_loader
from elsa_det.data.loader_errors import MapperError, with_named_errors
from elsa_det.data.workers import INDEX, DataWorkerError, explain_death, worker_deaths_explained
from elsa_det.errors import UserError


def images(count=6):
    sizes = {"height": 6, "width": 8}
    return [{"file_name": f"{i}.jpg", "image_id": 10 + i, **sizes, "annotations": []} for i in range(count)]


class Mapper:
    """Does what it is told to do at one image, or at any ("*")."""

    def __init__(self, at, fault):
        self.at, self.fault = at, fault

    def __call__(self, image):
        assert INDEX not in image
        if self.at in ("*", image["file_name"]):
            if self.fault == "bug":
                return image["no such key"]
            if self.fault == "ours":
                raise UserError("this image is empty")
            if self.fault == "exit":
                os._exit(3)
            os.kill(os.getpid(), self.fault)
            time.sleep(60)
        return image


def loader(at, fault, build=build_detection_test_loader, workers=1, **options):
    config = OmegaConf.create(flags={"allow_objects": True})
    config.test = LazyCall(build)(
        dataset=LazyCall(images)(), mapper=LazyCall(Mapper)(at=at, fault=fault), num_workers=workers, **options
    )
    named = instantiate(with_named_errors(config.test, "test"))
    assert "_target_" in config.test.mapper  # the config is kept
    return named


def loaded(batches):
    with worker_deaths_explained():
        return [image["file_name"] for batch in batches for image in batch]


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        (signal.SIGKILL, "is killed by signal: Killed; process {} had {}. The system kills processes when memory runs"),
        (signal.SIGSEGV, "is killed by signal: Segmentation fault; process {} had {}. A library crashed at the image"),
        (signal.SIGBUS, "is killed by signal: Bus error; process {} had {}. Shared memory is full (df /dev/shm)"),
        ("exit", "exited unexpectedly with exit code 3; process {} had {}. num_workers=0 of the loader loads images"),
    ],
)
def test_a_dead_worker_is_told_with_its_image(fault, how):
    with pytest.raises(DataWorkerError) as caught:
        loaded(loader("2.jpg", fault))
    said = re.escape(f"a data-loading worker {how}").replace(r"\{\}", "{}")
    image = re.escape("image 2.jpg (image_id 12, index 2 in the dataset)")
    assert re.match(said.format(r"\d+", image), str(caught.value)), str(caught.value)
    assert isinstance(caught.value, UserError)
    assert "DataLoader worker" in str(caught.value.__cause__)


def test_of_several_workers_the_dead_one_is_named():
    with pytest.raises(
        DataWorkerError, match=r"process \d+ had image 3\.jpg \(image_id 13, index 3 in the dataset\)\."
    ):
        loaded(loader("3.jpg", signal.SIGKILL, workers=2))


@pytest.mark.parametrize("build", [build_detection_train_loader, build_copy_paste_train_loader])
def test_loaders_for_training_name_it_too(build):
    named = loader("*", signal.SIGKILL, build, total_batch_size=2)
    with pytest.raises(DataWorkerError, match=r"had image (\d)\.jpg \(image_id 1\1, index \1 in the dataset\)"):
        loaded(named)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mapper_that_fails_names_its_image(workers):
    named = loader("5.jpg", "bug", workers=workers)
    said = r"the mapper failed at image 5\.jpg \(image_id 15, index 5 in the dataset\): KeyError: 'no such key'"
    with pytest.raises(MapperError, match=said) as caught:
        loaded(named)
    assert workers or isinstance(caught.value.__cause__, KeyError)
    assert not workers or 'return image["no such key"]' in str(caught.value)


def test_what_says_enough_stays_as_it_is():
    with pytest.raises(UserError, match="^this image is empty$"):
        loaded(loader("0.jpg", "ours", workers=0))
    with pytest.raises(RuntimeError, match="^something else$"), worker_deaths_explained():
        raise RuntimeError("something else")


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_what_they_are_without(workers):
    assert loaded(loader(None, None, workers=workers)) == [f"{i}.jpg" for i in range(6)]


def test_a_worker_of_which_nothing_is_noted():
    error = RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly")
    assert explain_death(error) == (
        "a data-loading worker exited unexpectedly; process 7 had an image that is not known; process 8 had an image "
        "that is not known. num_workers=0 of the loader loads images in the training process, whose own error says more"
    )
