"""Checkpoints that would run code, unfold to more than they are, or break numpy are refused by name."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from elsa_det.checkpoint import (
    CheckpointError,
    SafeCheckpointer,
    convert_published,
    read_checkpoint,
    unwrap_state_dict,
)
from elsa_det.d2 import unpickle_arrays


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture(params=[".pth", ".pkl", "legacy.pth"])
def evil(request, tmp_path):
    content = {"model": {"weight": torch.ones(1, 1), "bias": torch.ones(1)}, "evil": Evil(tmp_path / "ran")}
    path = tmp_path / f"evil{request.param}"
    if request.param == ".pkl":
        content = {"model": {"weight": np.ones((1, 1), "f4"), "bias": np.ones(1, "f4")}, "evil": content["evil"]}
        path.write_bytes(pickle.dumps(content | {"__author__": "x"}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=request.param == ".pth")
    return path


def test_files_that_would_run_code_are_refused(evil, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"mkdir.*ELSA_DET_TRUST=checkpoints"):
        read_checkpoint(evil)
    with pytest.raises(CheckpointError, match=r"ELSA_DET_TRUST=checkpoints"):
        SafeCheckpointer(nn.Linear(1, 1)).load(str(evil))
    (tmp_path / "last_checkpoint").write_text(evil.name)
    with pytest.raises(CheckpointError, match=r"ELSA_DET_TRUST=checkpoints"):
        SafeCheckpointer(nn.Linear(1, 1), str(tmp_path)).resume_or_load("", resume=True)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("ELSA_DET_TRUST", "checkpoints")
    read = read_checkpoint(evil)
    assert (tmp_path / "ran").is_dir()
    assert set(unwrap_state_dict(read)) == {"weight", "bias"}
    (tmp_path / "ran").rmdir()
    with pytest.raises(CheckpointError, match="mkdir"):
        read_checkpoint(evil, allow_code=False)


def test_states_of_a_training_are_read(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    random = {"numpy": np.random.get_state(), "torch": torch.get_rng_state(), "mean": np.float64(0.5)}
    SafeCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model", iteration=3, random=random)
    other = nn.Linear(2, 2)
    fresh = torch.optim.AdamW(other.parameters())
    rest = SafeCheckpointer(other, str(tmp_path), optimizer=fresh).resume_or_load("", resume=True)
    assert rest["iteration"] == 3
    kind, keys, *numbers = rest["random"]["numpy"]
    assert (kind, numbers) == (random["numpy"][0], list(random["numpy"][2:]))
    assert np.array_equal(keys, random["numpy"][1])
    assert keys.dtype == np.uint32
    assert rest["random"]["mean"] == 0.5
    assert torch.equal(other.weight, model.weight)
    assert fresh.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_read_as_numpy_reads_them(protocol):
    made = {
        "plain": np.arange(6, dtype="f4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype="i8").reshape(2, 3)),
        "big": np.arange(3, dtype=">i2"),
        "same": np.ones(2, ">f8"),
        "empty": np.zeros((0, 4), "u1"),
        "bool": np.array([True, False]),
        "scalar": np.float32(1.5),
        "within": [(np.ones(1),), {"x": b"abc"}],
    }
    read = unpickle_arrays(io.BytesIO(pickle.dumps(made, protocol)))
    for name in ("plain", "columns", "big", "same", "empty", "bool"):
        assert np.array_equal(read[name], made[name])
        assert read[name].dtype == made[name].dtype
    assert read["scalar"] == made["scalar"]
    assert read["within"][0][0] == 1
    assert read["within"][1] == {"x": b"abc"}


_DTYPE = b"cnumpy\ndtype\n"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (pickle.dumps(np.array([{}], dtype=object)), "arrays of the type 'O8?' are not read"),
        (pickle.dumps(np.zeros(1, [("a", "f4")])), "arrays of the type"),
        # a dtype whose state says that its bytes are pointers
        (_DTYPE + b"(S'f8'\nI0\nI1\ntR(I3\nS'|'\nN(S'a'\nt(dI8\nI1\nI0\ntb.", "type that is not a number"),
        # an array of 80 GB by 50 bytes
        (b"cnumpy\nndarray\n(L10000000000L\ntR.", "made in another way"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L10000000000L\ntS'b'\ntR.", "array"),
        # room for as many objects as four bytes say
        (b"Nr\xff\xff\xff\x7f.", "^$"),
        (b"cnumpy\nndarray\n(dS'__init__'\nNsb.", "a type has a state of its own"),
        (b"cos\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"(lp0\ng0\na.", "RecursionError"),
        (b"", "EOFError"),
        # an array of 4 GB of which there is one byte
        (b"\x80\x05\x96\0\0\0\0\1\0\0\0a.", "EOFError: the file ends within an array"),
    ],
)
def test_pickles_that_are_no_arrays(pickled, message):
    if message == "^$":
        assert unpickle_arrays(io.BytesIO(pickled)) is None
        return
    with pytest.raises(pickle.UnpicklingError, match=message):
        unpickle_arrays(io.BytesIO(pickled))


def test_what_a_pickle_repeats_stays_shared():
    lists = [[1]]
    for _ in range(60):
        lists.append([lists[-1], lists[-1]])
    read = unpickle_arrays(io.BytesIO(pickle.dumps(lists[-1])))
    assert read[0] is read[1]
    assert read[0][0] is read[0][1]


def test_an_archive_that_unfolds_is_refused(tmp_path):
    saved = io.BytesIO()
    torch.save({"model": {"weight": torch.zeros(200_000)}}, saved)
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match=r"would unfold to 80\d,\d{3}"):
        read_checkpoint(path)


@pytest.mark.parametrize("key", [1, ("a",), None])
def test_names_of_weights_are_text(key):
    with pytest.raises(CheckpointError, match="names that are no text, such as"):
        unwrap_state_dict({"model": {key: torch.ones(1)}})


def test_a_cut_pickle_in_an_archive(tmp_path):
    saved = io.BytesIO()
    torch.save({"model": {"weight": torch.zeros(3)}}, saved)
    path = tmp_path / "cut.pth"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as packed:
        for name in source.namelist():
            content = source.read(name)
            packed.writestr(name, content[:14] if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError, match="cut.pth"):  # struct.error, inside torch
        read_checkpoint(path)


def test_a_backbone_without_numbered_layers():
    weights = {"patch_embed.proj.weight": torch.ones(4, 3, 2, 2), "layers.x.norm.weight": torch.ones(4)}
    with pytest.raises(CheckpointError, match="not the weights of an ELSA-Swin or Swin backbone"):
        convert_published(weights)
