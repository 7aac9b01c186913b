"""Checkpoints."""

from __future__ import annotations

import multiprocessing
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from elsa_det.d2 import DetectionCheckpointer
from elsa_det.d2lite.checkpoint import DetectionCheckpointer as LiteCheckpointer
from elsa_det.d2lite.checkpoint.pickle_arrays import load_arrays


def model(value=0.0):
    net = nn.Module()
    net.backbone = nn.Linear(2, 3)
    net.head = nn.Linear(3, 2, bias=False)
    net.register_buffer("pixel_mean", torch.full((3,), value))
    for parameter in net.parameters():
        nn.init.constant_(parameter, value)
    return net


def optimizer(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def test_save_and_resume(tmp_path):
    net = model(1.0)
    saver = DetectionCheckpointer(net, str(tmp_path), optimizer=optimizer(net))
    assert not saver.has_checkpoint()
    saver.save("model_0000001", iteration=1)
    saver.checkpointables["optimizer"].param_groups[0]["lr"] = 0.5
    saver.save("model_0000002", iteration=2)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    saved = torch.load(tmp_path / "model_0000002.pth", weights_only=True)
    assert set(saved) == {"model", "optimizer", "iteration"}
    assert set(saved["model"]) == {"backbone.weight", "backbone.bias", "head.weight", "pixel_mean"}

    other = model()
    loader = DetectionCheckpointer(other, str(tmp_path), optimizer=optimizer(other))
    assert loader.resume_or_load("unused", resume=True) == {"iteration": 2}
    assert loader.checkpointables["optimizer"].param_groups[0]["lr"] == 0.5
    assert other.backbone.bias.tolist() == [1, 1, 1]

    loader.checkpointables["optimizer"].param_groups[0]["lr"] = 0.25
    rest = loader.resume_or_load(str(tmp_path / "model_0000001.pth"), resume=False)  # the model only
    assert rest["iteration"] == 1
    assert loader.checkpointables["optimizer"].param_groups[0]["lr"] == 0.25
    assert DetectionCheckpointer(other).load("") == {}


def test_only_who_should_writes(tmp_path):
    DetectionCheckpointer(model(), str(tmp_path), save_to_disk=False).save("model")
    assert list(tmp_path.iterdir()) == []


def test_bare_state_dict_and_missing_file(tmp_path):
    torch.save(model(2.0).state_dict(), tmp_path / "weights.pth")
    net = model()
    DetectionCheckpointer(net).load(str(tmp_path / "weights.pth"))
    assert net.head.weight.unique().tolist() == [2]
    with pytest.raises((FileNotFoundError, AssertionError), match=r"nothing\.pth"):
        DetectionCheckpointer(net).load(str(tmp_path / "nothing.pth"))


def test_what_does_not_fit_is_logged(tmp_path, caplog):
    state = model(2.0).state_dict()
    del state["pixel_mean"], state["backbone.bias"]
    state["head.weight"] = torch.zeros(5, 3)
    state["extra.weight"] = torch.zeros(1)
    state["anchor_generator.cell_anchors.0"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "weights.pth")
    net = model()
    DetectionCheckpointer(net).load(str(tmp_path / "weights.pth"))
    assert net.backbone.weight.unique().tolist() == [2]
    assert net.head.weight.unique().tolist() == [0]
    text = caplog.text
    assert "backbone.bias" in text
    assert "'head.weight' to the model due to incompatible shapes: (5, 3) in the checkpoint but (2, 3)" in text
    assert "extra.weight" in text
    assert "pixel_mean" not in text
    assert "cell_anchors" not in text


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_model_zoo_file(tmp_path, protocol):
    arrays = OrderedDict((name, value.numpy()) for name, value in model(3.0).state_dict().items())
    data = {"model": arrays, "__author__": "somebody", "accuracy": np.float32(0.5)}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(data, protocol))
    net = model()
    rest = DetectionCheckpointer(net).load(str(tmp_path / "weights.pkl"))
    assert rest == {"__author__": "somebody", "accuracy": 0.5}
    assert net.backbone.bias.tolist() == [3, 3, 3]


def test_names_are_matched_by_their_ends(tmp_path):
    short = {"weight": torch.full((3, 2), 7.0), "head.weight": torch.full((2, 3), 8.0), "other.bias": torch.zeros(3)}
    torch.save({"model": dict(short)}, tmp_path / "weights.pth")
    (tmp_path / "weights.pkl").write_bytes(
        pickle.dumps(
            {"model": {k: v.numpy() for k, v in short.items()}, "__author__": "x", "matching_heuristics": True}
        )
    )
    for name in ("weights.pth?matching_heuristics=True", "weights.pkl"):
        net = model()
        DetectionCheckpointer(net).load(str(tmp_path / name))
        assert net.backbone.weight.unique().tolist() == [7]
        assert net.head.weight.unique().tolist() == [8]
        assert net.backbone.bias.unique().tolist() == [0]
    net = model()
    DetectionCheckpointer(net).load(str(tmp_path / "weights.pth"))
    assert net.backbone.weight.unique().tolist() == [0]
    assert net.head.weight.unique().tolist() == [8]
    with pytest.raises(ValueError, match="something"):
        DetectionCheckpointer(net).load(str(tmp_path / "weights.pth?something=True"))


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_lite_runs_no_code_from_a_file(tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": {}, "__author__": Evil(mark)}))
    torch.save({"model": {}, "x": Evil(mark)}, tmp_path / "evil.pth")
    for name in ("evil.pkl", "evil.pth"):
        with pytest.raises(ValueError, match=rf"{name}.*torch\.save"):
            LiteCheckpointer(model()).load(str(tmp_path / name))
    assert not mark.exists()


def test_lite_says_what_else_it_does_not_read(tmp_path):
    (tmp_path / "c2.pkl").write_bytes(pickle.dumps({"conv1_w": np.zeros(3)}))
    (tmp_path / "torn.pkl").write_bytes(pickle.dumps({"model": np.zeros(3)})[:30])
    for name, message in (("c2.pkl", "Caffe2"), ("torn.pkl", r"torn\.pkl")):
        with pytest.raises(ValueError, match=message):
            LiteCheckpointer(model()).load(str(tmp_path / name))


def test_pickles_of_python_2(tmp_path):
    # {"model": {"w": array([1.0, 2.0], float32)}, "n": scalar} as Python 2 and numpy 1 wrote it
    data = (
        b"\x80\x02}q\x00(U\x05modelq\x01}q\x02U\x01wq\x03cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\n"
        b"q\x05K\x00\x85q\x06U\x01bq\x07\x87q\x08Rq\t(K\x01K\x02\x85q\ncnumpy\ndtype\nq\x0bU\x02f4q\x0cK\x00K\x01\x87q"
        b"\rRq\x0e(K\x03U\x01<q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x10b\x89U\x08\x00\x00\x80?\x00\x00\x00@"
        b"q\x11tq\x12bsu."
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(data)
    with open(path, "rb") as file:
        array = load_arrays(file, "old.pkl")["model"]["w"]
    assert array.dtype == np.float32
    assert array.tolist() == [1.0, 2.0]


def worker(rank, folder, results):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = model()
    checkpointer = LiteCheckpointer(DistributedDataParallel(net))
    rest = checkpointer.load(str(folder / ("weights.pth" if rank == 0 else "elsewhere.pth")))
    results.put((rank, rest, net.head.weight.unique().tolist(), net.pixel_mean.tolist(), checkpointer.save_to_disk))
    dist.destroy_process_group()


def test_lite_sends_the_weights_to_processes_without_the_file(tmp_path):
    torch.save({"model": model(4.0).state_dict(), "iteration": 9}, tmp_path / "weights.pth")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=worker, args=(rank, tmp_path, results)) for rank in range(2)]
    for process in workers:
        process.start()
    found = sorted((results.get(timeout=60) for _ in workers), key=lambda result: result[0])
    for process in workers:
        process.join(timeout=60)
    assert found == [(0, {"iteration": 9}, [4], [4, 4, 4], True), (1, {}, [4], [4, 4, 4], False)]
