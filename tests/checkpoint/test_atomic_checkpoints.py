"""Checkpoints are there as a whole or not at all, and a damaged one is not the end of a run."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import time

import pytest
import torch
from torch import nn

from elsa_det.checkpoint import CheckpointError, SafeCheckpointer, atomic, remove_unfinished, write_atomically
from elsa_det.errors import UserError


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("elsa_det"), "propagate", True)
    return caplog


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save(folder, value, name):
    model = nn.Linear(8, 8)
    nn.init.constant_(model.weight, value)
    SafeCheckpointer(model, str(folder)).save(name, iteration=int(value))


def resume(folder):
    """The value that is loaded, and the name of the file."""
    model = nn.Linear(8, 8)
    checkpointer = SafeCheckpointer(model, str(folder))
    checkpointer.resume_or_load("", resume=True)
    (value,) = set(model.weight.flatten().tolist())
    return value, os.path.basename(checkpointer.resumed_from)


class FullDisk:
    """A file on a disk with room for so many bytes."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        self._room -= len(memoryview(data).cast("B"))
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)


@pytest.mark.parametrize("room", [0, 600, 1500])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, room):
    save(tmp_path, 1, "model_0000000")
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "open", lambda *path: FullDisk(open(*path), room), raising=False)  # noqa: SIM115
        with pytest.raises(
            UserError, match=r"model_0000001\.pth could not be written: No space left on device.*--resume"
        ):
            save(tmp_path, 2, "model_0000001")
    assert names(tmp_path) == ["last_checkpoint", "model_0000000.pth"]
    assert resume(tmp_path) == (1, "model_0000000.pth")


def test_what_pytorch_makes_of_a_full_disk(tmp_path):
    """It raises a RuntimeError that does not say why."""

    def write(file):
        file._file = FullDisk(file._file, 0)
        try:
            file.write(b"x")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0") from None

    with pytest.raises(UserError, match="x could not be written: No space left on device"):
        write_atomically(tmp_path / "x", write)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        write_atomically(tmp_path / "x", lambda file: (_ for _ in ()).throw(RuntimeError("a fault of the program")))
    assert names(tmp_path) == []


def test_a_kill_while_writing(tmp_path):
    """A true SIGKILL, once the half of the file is on its way."""
    save(tmp_path, 1, "model_0000000")

    def write(file):
        file.write(b"x" * 100000)
        file.flush()
        time.sleep(60)

    part = tmp_path / "model_0000001.pth.part"
    process = multiprocessing.get_context("fork").Process(
        target=write_atomically, args=(tmp_path / "model_0000001.pth", write)
    )
    process.start()
    while not (part.exists() and part.stat().st_size):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert names(tmp_path) == ["last_checkpoint", "model_0000000.pth", "model_0000001.pth.part"]
    assert resume(tmp_path) == (1, "model_0000000.pth")
    (tmp_path / "notes.part").write_text("not ours")
    assert remove_unfinished(tmp_path) == [part]
    assert names(tmp_path) == ["last_checkpoint", "model_0000000.pth", "notes.part"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def flip(path):
    """Change a bit of a weight, which no reader notices without the checksum."""
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((8,), 3.0).numpy().tobytes())
    content[place + 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b""), os.unlink])
def test_a_damaged_last_checkpoint(tmp_path, log, damage):
    for number in (1, 2, 3):
        save(tmp_path, number, f"model_{number:07d}")
    save(tmp_path, 9, "model_best")
    save(tmp_path, 3, "model_0000003")
    damage(tmp_path / "model_0000003.pth")
    assert resume(tmp_path) == (2, "model_0000002.pth")
    assert "The last checkpoint cannot be used" in log.text
    assert "Going back to" in log.text
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    cut(tmp_path / "model_0000002.pth")
    assert resume(tmp_path) == (1, "model_0000001.pth")
    cut(tmp_path / "model_0000001.pth")
    with pytest.raises(CheckpointError, match=r"model_0000001\.pth .*truncated"):
        resume(tmp_path)


def test_an_empty_last_checkpoint_file(tmp_path):
    save(tmp_path, 4, "model_0000004")
    (tmp_path / "last_checkpoint").write_text("")  # as versions before left it when they were killed
    assert resume(tmp_path) == (4, "model_0000004.pth")
    (tmp_path / "model_0000004.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("")
    with pytest.raises(CheckpointError, match="last_checkpoint names no checkpoint"):
        resume(tmp_path)
