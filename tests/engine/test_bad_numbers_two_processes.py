"""Bad numbers of one of two processes, over Gloo on the CPU: both do the same, and neither waits for the other."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from pathlib import Path

import pytest
import torch
from faulty import Faulty, batches

from elsa_det import d2
from elsa_det.engine.accumulation import make_trainer
from elsa_det.engine.bad_numbers import BadNumbersOptions, NumberGuard

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")

#: name: faults of the batches of each process, passes in a step, options
CASES = {
    "skip": ([[None] * 5, [None, "nan", "refuse", "gradient", None]], 1, {"action": "skip"}),
    "passes": ([[None] * 6, [None, None, "refuse", None, None, None]], 2, {"action": "skip"}),
    "rollback": ([[None, None, None, "nan"], [None] * 4], 1, {"action": "rollback", "snapshot_period": 2}),
    "stop": ([[None, "nan"], [None, None]], 1, {}),
    "forward": ([[None, None], [None, "refuse"]], 1, {}),
    "row": ([["nan", "refuse", None], [None] * 3], 1, {"action": "skip", "max_in_a_row": 2}),
}


def digest(model):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def run(folder, faults, passes, options):
    """The weights after each step, and how it ended."""
    model = Faulty()
    ddp = d2.create_ddp_model(model, **({"device_ids": None} if d2.PROVIDER == d2.UPSTREAM else {}))
    guard = NumberGuard(BadNumbersOptions(**options), folder)
    own = batches(faults[d2.comm.get_rank()], seed=d2.comm.get_rank())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = make_trainer(ddp, own, optimizer, amp=False, accumulate=passes, guard=guard)
    weights = [digest(model)]
    trainer.register_hooks([d2.hooks.CallbackHook(after_step=lambda _: weights.append(digest(model)))])
    ended = "finished"
    try:
        trainer.train(0, len(own) // passes)
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"
    return weights, ended, guard.total


def worker(folder: str) -> None:
    logging.disable(logging.ERROR)
    report = {name: run(Path(folder, name), *case) for name, case in CASES.items()}
    Path(folder, f"{d2.comm.get_rank()}.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    d2.launch(worker, 2, dist_url="auto", args=(str(folder),))
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_both_have_the_same_weights_and_counts(both):
    _, (main, other) = both
    for name in CASES:
        assert main[name][0] == other[name][0], name
        assert main[name][2] == other[name][2], name


def changes(report):
    weights = report[0]
    return [now != before for before, now in itertools.pairwise(weights)]


def test_a_step_is_left_out_by_both(both):
    _, (main, _) = both
    assert changes(main["skip"]) == [True, False, False, False, True]
    assert main["skip"][1:] == ["finished", 3]
    assert changes(main["passes"]) == [True, False, True]
    assert main["passes"][1:] == ["finished", 1]


def test_both_go_back(both):
    _, (main, _) = both
    weights, ended, total = main["rollback"]
    assert len(set(weights[:4])) == 4
    assert weights[4] == weights[2]  # the snapshot was made before the step of iteration 2
    assert (ended, total) == ("finished", 1)


def test_both_stop_with_the_same_reason(both):
    folder, (main, other) = both
    for report in (main, other):
        begin = "BadNumbersError: Bad numbers at iteration 1:"
        where = f"the batch is in {folder}/{{}}/bad_numbers.jsonl. Training stops; it did not"
        stop = f"{begin} loss_a is nan (process 0); {where.format('stop')}"
        refused = f"{begin} scores are not finite (process 1); {where.format('forward')}"
        assert report["stop"][1].startswith(stop)
        assert report["forward"][1].startswith(refused)
        assert "2 times in a row" in report["row"][1]
        assert "at iteration 1: scores are not finite (process 0)" in report["row"][1]


def test_each_batch_and_its_losses_are_a_line(both):
    folder, _ = both
    lines = [json.loads(line) for line in (folder / "skip" / "bad_numbers.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["rank"]) for line in lines] == [(i, rank) for i in (1, 2, 3) for rank in (0, 1)]
    for first, other in zip(lines[::2], lines[1::2]):
        assert first["processes"] == other["processes"] == 2
    for rank in range(2):
        bad, _, gradient = lines[rank::2]
        pixels = batches([None, None], seed=rank)[1][0]["image"]
        assert bad["passes"][0][0]["image"]["max"] == float(pixels.max())
        assert gradient["bad_gradients"] == ["head.bias"]
        assert (bad["kind"], gradient["kind"]) == ("loss", "gradient")
    assert lines[0]["losses"]["loss_a"] > 0
    assert lines[1]["losses"]["loss_a"] == "nan"
    assert [(line["kind"], line["error"], bool(line["losses"])) for line in lines[2:4]] == [
        ("loss", "", True),
        ("forward", "scores are not finite", False),
    ]
