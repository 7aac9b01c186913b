"""The bar on a terminal, and what goes above it."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from elsa_det.d2 import CommonMetricPrinter, DatasetEvaluators, EventStorage, TrainerBase, hooks, setup_logger
from elsa_det.engine import progress
from elsa_det.engine.progress import progress_mode, show_progress, training_facts
from elsa_det.errors import UserError
from elsa_det.evaluation import run_inference


class Terminal(io.StringIO):
    """Shows what a terminal of endless height would, of the few control sequences that a bar needs."""

    def isatty(self) -> bool:
        return True

    def attach(self, monkeypatch) -> None:
        """Becomes stdout and stderr; once more in each test, as pytest puts its own in place before it."""
        monkeypatch.setattr(sys, "stdout", self)
        monkeypatch.setattr(sys, "stderr", self)

    def screen(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for token in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.getvalue()):
            if token == "\n":
                row, column = row + 1, 0
                rows += [""] * (row == len(rows))
            elif token == "\r":
                column = 0
            elif token[0] != "\x1b":
                rows[row] = rows[row][:column].ljust(column) + token + rows[row][column + len(token) :]
                column += len(token)
            elif token[-1] == "A":
                row -= int(token[2:-1] or 1)
            elif token == "\x1b[2K":
                rows[row] = ""
            else:
                assert token[-1] in "mlh", token  # colours, and the cursor hidden and shown
        return [line.rstrip() for line in rows]


@pytest.fixture
def terminal(monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setattr(progress, "_REDRAWN", 0.0)
    found = Terminal()
    found.attach(monkeypatch)
    return found


@pytest.fixture
def logger(terminal, tmp_path):
    """Detectron2's, with its handlers for the terminal and for a file."""
    logger = logging.getLogger("detectron2")
    names = ("detectron2", "elsa_det.d2lite")
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).level) for name in names}
    setup_logger(str(tmp_path / "log.txt"), name="detectron2")
    yield logger
    for name, (handlers, level) in before.items():
        logging.getLogger(name).handlers[:] = handlers
        logging.getLogger(name).setLevel(level)


class Trainer(TrainerBase):
    """Losses fall by 0.5 in each iteration, and each third is worth a word."""

    def run_step(self) -> None:
        value = 8.0 - 0.5 * self.iter
        self.storage.put_scalars(total_loss=value, loss_cls=0.75 * value, loss_box=0.25 * value, data_time=0.25)
        self.storage.put_scalar("lr", 0.125, smoothing_hint=False)
        if self.iter % 3 == 0:
            logging.getLogger("detectron2").info("[word] iteration %d\nand a second line", self.iter)
            print(f"printed at {self.iter}")


def with_writer(max_iter):
    trainer = Trainer()
    trainer.register_hooks([hooks.IterationTimer(), hooks.PeriodicWriter([CommonMetricPrinter(max_iter)], period=2)])
    return trainer


def test_facts_are_smoothed_like_the_log():
    with EventStorage(0) as storage:
        for iteration in range(30):
            storage.iter = iteration
            storage.put_scalars(
                loss_b=float(iteration), total_loss=2.0 * iteration, time=0.5 if iteration < 20 else 1.5
            )
            storage.put_scalar("lr", 0.1 * iteration, smoothing_hint=False)
        facts = training_facts(storage, 40)
    assert facts.losses == [("total_loss", 39.0), ("loss_b", 19.5)]  # medians of 10 to 29
    assert facts.seconds == pytest.approx(1.0)  # ten iterations of 0.5 s, ten of 1.5 s
    assert facts.data_seconds is None
    assert facts.lr == pytest.approx(2.9)
    assert facts.eta == pytest.approx(10 * 0.5)  # ten to go, the median of all is 0.5 s


def test_nothing_is_recorded_yet():
    with EventStorage(0) as storage:
        assert training_facts(storage, 5) == progress.Facts([], None, None, None, None)


def test_a_training_on_a_terminal(terminal, logger, tmp_path, monkeypatch):
    terminal.attach(monkeypatch)
    trainer = with_writer(8)
    with show_progress({"progress": "auto"}, trainer):
        trainer.train(0, 8)
    screen = terminal.screen()
    words = [line.partition("]: ")[2] or line for line in screen if "word" in line or "second line" in line]
    assert words == ["[word] iteration 0", "and a second line"] + [
        text for i in (3, 6) for text in (f"[word] iteration {i}", "and a second line")
    ]
    assert [line for line in screen if "printed" in line] == ["printed at 0", "printed at 3", "printed at 6"]
    assert sum("━" in line for line in screen) == 1  # no bar was left behind among the lines
    while not screen[-1]:
        screen.pop()
    assert re.fullmatch(r"training ━+ 8/8 100% eta 0:00:00", screen[-3])
    assert screen[-2] == "total_loss 6.25  loss_cls 4.688  loss_box 1.562"  # medians of 8.0 to 4.5
    assert re.fullmatch(r"lr 0.125  time 0.\d{3} s  data_time 0.250 s  (max GPU )?memory [\d,]+ MiB", screen[-1])
    # What the bar shows is a line in the file only, which has nothing of the bar.
    assert not any("total_loss: " in line for line in screen)
    log = (tmp_path / "log.txt").read_text()
    assert [int(found) for found in re.findall(r"iter: (\d+)  total_loss: ", log)] == [1, 3, 5, 7]
    assert log.count("[word] iteration") == 3
    assert "━" not in log
    assert "\x1b" not in log


def test_everything_is_as_before_afterwards(terminal, logger, monkeypatch):
    terminal.attach(monkeypatch)
    handlers = [handler for handler in logger.handlers if handler.stream is terminal]
    assert handlers

    def interrupted() -> None:
        with show_progress({}) as display:
            assert display is not None
            assert sys.stdout is not terminal
            assert all(handler.stream is not terminal for handler in handlers)
            print("half a line", end="")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        interrupted()
    assert sys.stdout is terminal
    assert sys.stderr is terminal
    assert all(handler.stream is terminal and not handler.filters for handler in handlers)
    assert any(line.startswith("half a line") for line in terminal.screen())
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")  # the cursor is back


def test_an_evaluation_has_its_bar(terminal, monkeypatch):
    terminal.attach(monkeypatch)
    seen = []

    class Slow(torch.nn.Module):
        def forward(self, batch):
            seen.append([line for line in terminal.screen() if "evaluation" in line])
            return batch

    with show_progress({"progress": "bar"}):
        assert run_inference(Slow(), [[1], [2], [3]], DatasetEvaluators([])) == {}
    assert [len(lines) for lines in seen] == [1, 1, 1]
    for done, (line,) in enumerate(seen):
        assert re.fullmatch(rf"evaluation [━╸╺ ]+ {done}/3 +{100 * done / 3:.0f}% eta [\d:-]+", line)
    assert not any("evaluation" in line for line in terminal.screen())  # it is done


def test_lines_that_only_count_are_left_to_the_file(terminal, logger, tmp_path, monkeypatch):
    terminal.attach(monkeypatch)
    with show_progress({}):
        for name, text in (
            ("evaluation.evaluator", "Inference done 3/9. Total: 1 s"),
            ("evaluation.evaluator", "Start"),
        ):
            logging.getLogger(f"detectron2.{name}").info(text)
        logging.getLogger("detectron2.utils.events").warning("a warning of the writers")
    screen = "\n".join(terminal.screen())
    assert "Start" in screen
    assert "a warning of the writers" in screen
    assert "Inference done" not in screen
    assert "Inference done 3/9" in (tmp_path / "log.txt").read_text()


def test_another_process_writes_where_it_did(terminal, monkeypatch):
    terminal.attach(monkeypatch)
    with show_progress({}):
        other = os.getpid() + 1
        monkeypatch.setattr(os, "getpid", lambda: other)
        before = len(terminal.getvalue())
        print("of a worker")
        assert terminal.getvalue()[before:] == "of a worker\n"


def test_without_a_terminal_nothing_changes(monkeypatch, caplog):
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stdout", plain)
    for mode in ("auto", "bar", "plain"):
        trainer = SimpleNamespace(register_hooks=lambda _: pytest.fail("no hook is needed"))
        with show_progress({"progress": mode}, trainer) as display:
            assert display is None
            assert sys.stdout is plain
    assert plain.getvalue() == ""
    assert [record.message for record in caplog.records] == [
        "train.progress=bar needs a terminal, and there is none: progress is in the log's lines"
    ]


def test_plain_and_errors_to_a_file(terminal, monkeypatch):
    terminal.attach(monkeypatch)
    with show_progress({"progress": "plain"}) as display:
        assert display is None
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with show_progress({"progress": "auto"}) as display:
        assert display is None
    with show_progress({"progress": "bar"}) as display:
        assert display is not None
        assert type(sys.stderr) is io.StringIO  # goes on to its file


def test_an_unknown_mode():
    assert progress_mode({}) == "auto"
    with pytest.raises(UserError, match=r"train.progress='fancy' must be 'auto' .*'bar' or 'plain'"):
        progress_mode({"progress": "fancy"})


def test_the_bar_is_drawn_now_and_then(terminal, monkeypatch):
    terminal.attach(monkeypatch)
    monkeypatch.setattr(progress, "_REDRAWN", 1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    trainer = with_writer(50)
    with show_progress({}, trainer):
        trainer.train(0, 50)
    assert terminal.getvalue().count("training") < 10 + 3 * 17  # once with each word, not with each iteration
    assert any("50/50" in line for line in terminal.screen())
