"""tools/benchmark.py: the arithmetic on made-up times, the structure on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from elsa_det import d2, get_config
from elsa_det.benchmark import parts as parts_module
from elsa_det.benchmark import throughput
from elsa_det.benchmark.made_up import made_up_image
from elsa_det.benchmark.parts import Clock, PartTimer, model_parts
from elsa_det.benchmark.runner import ChildFailed
from elsa_det.benchmark.runs import Exhausted, Sample, TrainRun, set_up
from elsa_det.benchmark.throughput import Figures, measure, measure_memory
from elsa_det.benchmark.throughput_report import number, parts_table, throughput_table
from elsa_det.benchmark.workload import DATA, INFERENCE, TRAIN, Workload, class_count
from elsa_det.data.shapes import SceneSpec, SetSpec, overrides_for, write_shapes
from elsa_det.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "quickstart" / "elsa_nano_mrcnn.py")
SMALL = ("model.backbone.bottom_up.embed_dim=16", "train.device=cpu")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_tool", ROOT / "tools" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, SetSpec(train=5, val=3, scene=SceneSpec(image_size=64, max_object=40)))
    return (*SMALL, *overrides_for(folder))


def text_of(table) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


# --- arithmetic -------------------------------------------------------------------------------------------------------


def figures(seconds, *, task=INFERENCE, images=2, name="a.py", parts=None, **fields) -> Figures:
    samples = [Sample(s, images, {k: share * s for k, share in (parts or {}).items()}, 3 * images) for s in seconds]
    return Figures(Workload(name, task=task), "data", samples=samples, **fields)


def test_rates_and_percentiles():
    found = figures([0.1 * n for n in range(1, 12)])  # 0.1 … 1.1 s
    assert found.images_per_second == pytest.approx(22 / 6.6)
    assert [found.latency(p) for p in (0, 50, 90, 99, 100)] == pytest.approx([0.1, 0.6, 1.0, 1.09, 1.1])
    assert (found.batch, found.detections) == (2, 3)
    nothing = figures([])
    assert math.isnan(nothing.images_per_second)
    assert math.isnan(nothing.latency(50))
    assert nothing.detections is None
    assert figures([0.5], parts={"forward": 0.5, "forward/neck": 0.25}).parts() == {
        "forward": 0.25,
        "forward/neck": 0.125,
    }


def test_tables_have_ratios_to_the_first():
    first = figures([0.1, 0.2, 0.3], name="first.py", parts={"backbone": 0.5, "rest": 0.5}, peak=400_000_000)
    second = figures([0.2, 0.4, 0.6], name="second.py", parts={"backbone": 0.25, "rest": 0.75}, peak=100_000_000)
    lines = text_of(throughput_table([first, second])).splitlines()
    assert "(ratio to first)" in lines[0]
    rows = {line.split()[1]: line.replace("│", " ").split() for line in lines if "│" in line}
    # images/s 6 / 0.6; p50, p90, p99; peak; at rest; found; steps
    assert rows["first"] == ["first", "2", "10", "200", "280", "298", "400", "–", "3.0", "3"]
    assert rows["second"] == [
        "second",
        "2",
        "5",
        "(0.50×)",
        "400",
        "(2.00×)",
        "560",
        "596",
        "100",
        "(0.25×)",
        "–",
        "3.0",
        "3",
    ]
    lines = text_of(parts_table([first, second])).splitlines()
    rows = {line.split()[1]: line.replace("│", " ").split() for line in lines if "│" in line}
    assert rows["backbone"] == ["backbone", "100", "50%", "100", "25%", "(1.00×)"]
    assert rows["rest"] == ["rest", "100", "50%", "300", "75%", "(3.00×)"]
    assert rows["step"] == ["step", "200", "400", "(2.00×)"]
    assert parts_table([figures([0.1], task=DATA)]) is None


def test_numbers():
    assert [number(v) for v in (1234.5, 99.96, 0.01234, math.nan)] == ["1234", "100", "0.0123", "–"]


# --- parts ------------------------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.bottom_up, self.lateral = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x):
        return self.lateral(self.bottom_up(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.roi_heads, self.sem_seg_head, self.unused = (
            Wrapper(),
            *(nn.Linear(1, 1) for _ in range(3)),
        )

    def forward(self, x):
        return self.sem_seg_head(self.roi_heads(self.roi_heads(self.backbone(x))))


def test_parts_of_a_model(monkeypatch):
    model = Model()
    assert list(model_parts(model)) == ["backbone", "neck", "heads", "sem_seg_head", "unused"]
    ticks = iter(range(1000))
    monkeypatch.setattr(parts_module.time, "perf_counter", lambda: float(next(ticks)))
    timer = PartTimer(model, Clock("cpu"))
    model(torch.zeros(1, 1))
    # neck from 0 to 3 with the backbone from 1 to 2 inside; the heads twice
    assert timer.take() == {"backbone": 1.0, "neck": 2.0, "heads": 2.0, "sem_seg_head": 1.0}
    assert timer.take() == {}
    timer.remove()
    model(torch.zeros(1, 1))
    assert timer.take() == {}


# --- workloads --------------------------------------------------------------------------------------------------------


def test_made_up_images_are_what_a_mapper_gives():
    entry = made_up_image((40, 60), 5, 7, np.random.default_rng(0))
    instances = entry["instances"]
    assert entry["image"].shape == (3, 40, 60)
    assert entry["image"].dtype == torch.uint8
    assert (entry["height"], entry["width"], len(instances)) == (40, 60, 5)
    assert isinstance(instances.gt_masks, d2.PolygonMasks)
    torch.testing.assert_close(instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor)
    boxes = instances.gt_boxes.tensor
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 60).all()
    assert (boxes[:, 3] <= 40).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert ((sides >= torch.tensor([3.0, 2.0]) - 1e-4) & (sides <= torch.tensor([24.0, 16.0]) + 1e-4)).all()
    assert set(instances.gt_classes.tolist()) <= set(range(7))
    assert entry["sem_seg"].shape == (40, 60)
    assert 0 <= entry["sem_seg"].min() <= entry["sem_seg"].max() < 7
    bits = made_up_image((40, 60), 5, 7, np.random.default_rng(0), "bitmask")["instances"]
    assert isinstance(bits.gt_masks, d2.BitMasks)
    assert torch.equal(bits.gt_boxes.tensor, boxes)
    assert len(made_up_image((40, 60), 0, 7, np.random.default_rng(0))["instances"]) == 0


def test_classes_of_a_config():
    assert class_count(get_config("quickstart/elsa_nano_mrcnn.py")) == 6
    assert class_count(get_config("coco/elsa_t_mrcnn_1x.py")) == 80
    cfg = get_config("coco/elsa_t_mrcnn_1x.py")
    cfg.model = {"backbone": {"depth": 3}}
    with pytest.raises(UserError, match="how many num_classes"):
        class_count(cfg)


def test_workloads_travel_as_json():
    work = Workload("folder/a.py", ("x=1",), TRAIN, batch=2, random_size=(8, 9), workers=3)
    assert Workload.from_dict(json.loads(json.dumps(work.to_dict()))) == work
    assert work.name == "a x=1 workers=3"
    other = Workload("folder/a.py", ("x=1", "y=2"), distinct=("y=2",))
    assert Workload.from_dict(json.loads(json.dumps(other.to_dict()))) == other
    assert other.name == "a y=2"
    assert Workload("folder/a.py", task=DATA, split="test").loader == "test"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "sleep"}, "task must be one of inference, train, data, got 'sleep'"),
        ({"task": DATA, "random_size": (8, 8)}, "cannot be given to the task data"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"split": "val"}, "split must be train or test"),
    ],
)
def test_workloads_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message):
        Workload(CONFIG, **fields)


def test_inference_on_data_and_on_made_up_images(data):
    run = set_up(Workload(CONFIG, data, batch=2, pool=2))
    assert [len(batch) for batch in run.batches] == [2, 1]
    sample = run.step(0)
    assert (sample.images, sample.detections) == (2, sum(len(o["instances"]) for o in run.model(run.batches[0])))
    assert list(sample.parts) == ["backbone", "neck", "proposals", "heads", "rest"]
    assert all(seconds > 0 for seconds in sample.parts.values())
    assert 0.9 * sample.seconds < sum(sample.parts.values()) <= sample.seconds
    assert run.step(3).images == 1, "in turn"
    assert run.inputs.endswith("instances_val.json")
    run = set_up(Workload(CONFIG, SMALL, random_size=(48, 64), objects=3, pool=1))
    assert run.batches[0][0]["image"].shape == (3, 48, 64)
    assert run.inputs == "MADE-UP images 48×64 with 3 objects each, not data"
    assert run.notes == ["weights: initial"]


def test_a_step_of_training_keeps_the_weights(data):
    run = set_up(Workload(CONFIG, (*data, "train.clip_grad_norm=0.5"), TRAIN, batch=2))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    sample = run.step(0)
    assert sample.images == 2
    tops = [name for name in sample.parts if "/" not in name]
    assert tops == ["data", "forward", "backward", "optimizer"]
    inner = [name for name in sample.parts if "/" in name]
    assert inner == [f"forward/{name}" for name in ("backbone", "neck", "proposals", "heads", "rest")]
    assert sum(sample.parts[name] for name in inner) == pytest.approx(sample.parts["forward"])
    assert 0.9 * sample.seconds < sum(sample.parts[name] for name in tops) <= sample.seconds
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    norm = torch.cat([p.grad.flatten() for p in run.parameters if p.grad is not None]).norm()
    assert norm <= 0.5 + 1e-5, "clipped as the config says"
    assert all(run.optimizer.state[p]["step"] == 1 for p in run.parameters if p.grad is not None)


def test_a_step_in_several_passes(data):
    run = set_up(Workload(CONFIG, (*data, "train.accumulate=2"), TRAIN, batch=4))
    sample = run.step(0)
    assert sample.images == 4
    assert "a step in 2 passes" in run.notes
    assert sum(sample.parts[n] for n in ("data", "forward", "backward", "optimizer")) <= sample.seconds
    assert all(run.optimizer.state[p]["step"] == 1 for p in run.parameters if p.grad is not None)
    with pytest.raises(UserError, match="a batch of 3 images cannot be divided into train.accumulate=2 passes"):
        set_up(Workload(CONFIG, (*data, "train.accumulate=2"), TRAIN, batch=3))


def test_a_segmentor_is_measured_alike():
    small = ("model.backbone.embed_dim=16", "train.device=cpu")
    config = str(ROOT / "configs" / "quickstart" / "elsa_nano_upernet.py")
    run = set_up(Workload(config, small, random_size=(64, 64), pool=1))
    sample = run.step(0)
    assert sample.detections is None
    assert list(sample.parts) == ["backbone", "decode_head", "rest"]
    run = set_up(Workload(config, small, TRAIN, batch=2, random_size=(64, 64)))
    inner = [name.split("/")[1] for name in run.step(0).parts if "/" in name]
    assert inner == ["backbone", "decode_head", "auxiliary_head", "rest"]


def test_a_loss_that_is_no_number_stops():
    run = set_up(Workload(CONFIG, SMALL, TRAIN, batch=1, random_size=(48, 64)))
    assert isinstance(run, TrainRun)
    with torch.no_grad():
        run.model.roi_heads.box_predictor.cls_score.bias.fill_(math.nan)
    with pytest.raises(UserError, match="the loss is nan at step 4"):
        run.step(4)


def test_the_data_loader_alone(data):
    run = set_up(Workload(CONFIG, data, DATA, batch=2, split="test"))
    assert run.step(0).images == 1
    with pytest.raises(Exhausted):
        run.step(1)
    found: list[Figures] = []
    works = [Workload(CONFIG, data, DATA, batch=3).with_workers(n) for n in (0, 1)]
    measure(works, found, warmup=1, iterations=3)
    assert [len(f.samples) for f in found] == [3, 3]
    assert {s.images for f in found for s in f.samples} == {3}
    assert [f.notes[0] for f in found] == ["train loader, 0 workers", "train loader, 1 workers"]
    found.clear()
    measure([Workload(CONFIG, data, DATA, split="test")], found, warmup=1, iterations=5)
    assert (len(found[0].samples), found[0].notes[-1]) == (1, "the loader ended after 2 batches")


def test_workloads_take_turns(monkeypatch):
    order = []

    class Made:
        inputs, device = "data", "cpu"

        def __init__(self, work):
            self.work, self.notes = work, []

        def step(self, index):
            order.append((self.work.name, index))
            return Sample(1.0, 1)

    monkeypatch.setattr(throughput, "set_up", Made)
    found: list[Figures] = []
    measure([Workload("a.py"), Workload("b.py")], found, warmup=1, iterations=2)
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [len(f.samples) for f in found] == [2, 2]
    order.clear()
    measure([Workload("a.py", task=DATA), Workload("b.py", task=DATA)], found, warmup=0, iterations=2)
    assert [name for name, _ in order] == ["a", "a", "b", "b"], "one after another"


def test_memory_is_read_in_a_process_of_its_own(monkeypatch):
    asked = []

    def ask(worker, job, threads, malloc):
        asked.append((worker, job["task"], threads, malloc))
        if job["config_file"] == "b.py":
            raise ChildFailed("the process was ended by SIGKILL, probably out of memory")
        return {"peak": 7, "rest": 5}

    monkeypatch.setattr(throughput, "ask_child", ask)
    found = [Figures(Workload("a.py")), Figures(Workload("b.py", task=TRAIN)), Figures(Workload("a.py", task=DATA))]
    measure_memory(found, 2)
    assert asked == [("memory_worker", INFERENCE, 2, {}), ("memory_worker", TRAIN, 2, {})]
    assert [(f.peak, f.rest) for f in found] == [(7, 5), (None, None), (None, None)]
    assert found[1].notes == ["memory was not measured: the process was ended by SIGKILL, probably out of memory"]


def test_memory_of_a_real_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [Figures(Workload(CONFIG, SMALL, random_size=(48, 64), pool=1))]
    measure_memory(found, 1)
    assert found[0].notes == []
    assert 100e6 < found[0].rest <= found[0].peak < 2e9


# --- the tool ---------------------------------------------------------------------------------------------------------


def test_two_configs_side_by_side(tool, tmp_path, capsys, monkeypatch):
    def ask(worker, job, threads, malloc):  # starting a process takes seconds: one other test does
        assert worker == "memory_worker"
        assert job.pop("threads") == threads
        return throughput.memory_of(Workload.from_dict(job), threads)

    monkeypatch.setattr(throughput, "ask_child", ask)
    other = "model.backbone.out_channels=32"
    arguments = ["--config-file", CONFIG, "--config-file", CONFIG, other, "--random", "48x64", "--iterations", "2"]
    assert tool([*arguments, "--warmup", "1", "--pool", "1", "--json", str(tmp_path / "out.json"), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "MADE-UP images 48×64 with 8 objects each, not data" in out
    assert "weights: initial" in out
    assert "Inference, (ratio to elsa_nano_mrcnn)" in out
    assert f"all with: {' '.join(SMALL)}" in " ".join(out.split())
    document = json.loads((tmp_path / "out.json").read_text())
    first, second = document["results"]
    assert first["workload"]["overrides"] == list(SMALL)
    assert second["workload"]["overrides"] == [other, *SMALL]
    for result in (first, second):
        assert len(result["samples"]) == 2
        total = sum(sample["seconds"] for sample in result["samples"])
        assert result["images_per_second"] == pytest.approx(2 / total)
        assert 100e6 < result["rest_bytes"] <= result["peak_bytes"] < 4e9
        assert set(result["parts_mean_seconds"]) == {"backbone", "neck", "proposals", "heads", "rest"}
    assert {"cpu", "torch", "operator", "framework"} <= set(document["machine"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "gone.py"], "gone.py does not exist"),
        (
            ["--config-file", CONFIG, "dataset.test.json_file=gone.json"],
            "--random 800x1333 measures with made-up images",
        ),
        (
            ["--config-file", CONFIG, "--load-weights", "--random", "64", "train.init_checkpoint=no.pth"],
            "no.pth does not",
        ),
        (["--config-file", CONFIG, "--task", "data", "--random", "64"], "cannot be given to the task data"),
    ],
)
def test_mistakes_give_one_message(tool, capsys, arguments, message):
    assert tool([*arguments, "--no-memory"]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "error: " in err
    assert "Traceback" not in err


def test_mistakes_on_the_command_line(tool, capsys):
    for arguments, message in (
        (["--random", "wide"], "a size is a number of pixels"),
        (["--iterations", "0"], "--iterations must be at least 1, got 0"),
        (["--workers", "1", "2"], "several numbers of --workers"),
    ):
        with pytest.raises(SystemExit) as stopped:
            tool(["--config-file", CONFIG, *arguments])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
