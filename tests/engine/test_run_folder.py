"""What a run leaves in its folder beside checkpoints: records, pictures, and scalars at Weights & Biases."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from elsa_det.d2 import EventStorage, TrainerBase
from elsa_det.engine import run_pictures
from elsa_det.engine.keep_best import TrainingStopped
from elsa_det.engine.run_pictures import RunPictures, read_figures
from elsa_det.engine.run_records import describe_sources, write_records
from elsa_det.engine.wandb_writer import WandbWriter, plain_config, read_wandb
from elsa_det.errors import UserError


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=trunk")
    (folder / "a.txt").write_text("before\n")
    git(folder, "add", "a.txt")
    git(folder, "commit", "--quiet", "--message=first")
    monkeypatch.chdir(folder)
    return folder


class TestSources:
    def test_a_clean_repository(self, repository):
        text = describe_sources()
        assert f"the working directory: repository {repository.resolve()}\n" in text
        assert f"commit {git(repository, 'rev-parse', 'HEAD')}\nbranch trunk\nno changes" in text

    def test_changes_are_kept(self, repository):
        (repository / "a.txt").write_text("after\n")
        (repository / "new.txt").write_text("")
        text = describe_sources()
        assert "branch trunk\nchanges:\n M a.txt\n?? new.txt\n\ndiff --git a/a.txt b/a.txt\n" in text
        assert "-before\n+after" in text

    def test_a_detached_head_without_branch(self, repository):
        git(repository, "checkout", "--quiet", "--detach")
        assert "no branch (detached)" in describe_sources()

    def test_no_repository(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert f"the working directory ({tmp_path}): no git state: fatal: not a git repository" in describe_sources()

    def test_no_git(self, repository, monkeypatch):
        monkeypatch.setenv("PATH", str(repository))
        text = describe_sources()
        assert f"the working directory ({repository}): no git state: git cannot be run (No such file or" in text


class TestRecords:
    def test_a_new_run_begins_anew_and_a_resumed_one_adds(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        run = tmp_path / "run"
        for arguments, anew in ((["old"], True), (["new one", "--x"], True), (["again", "--resume"], False)):
            monkeypatch.setattr(sys, "argv", arguments)
            write_records(run, anew=anew)
        entries = [entry.splitlines()[1:3] for entry in (run / "command.txt").read_text().split("=== ")[1:]]
        assert entries == [
            [f"cd {tmp_path}", f"{sys.executable} 'new one' --x"],
            [f"cd {tmp_path}", f"{sys.executable} again --resume"],
        ]
        environment = (run / "environment.txt").read_text()
        assert f"\ntorch=={torch.__version__.partition('+')[0]}" in environment
        assert f"\nnumpy=={np.__version__}\n" in environment
        assert "Running on " in environment
        assert "Operator:\n" in environment
        assert (run / "git.txt").read_text().count("the working directory") == 2

    def test_what_cannot_be_written_is_a_warning(self, tmp_path, caplog):
        (tmp_path / "file").write_text("")
        write_records(tmp_path / "file", anew=True)
        assert [record.message.partition(" could")[0] for record in caplog.records] == [
            str(tmp_path / "file" / name) for name in ("command.txt", "environment.txt", "git.txt")
        ]


class Trainer(TrainerBase):
    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after = stop_after

    def run_step(self):
        self.storage.put_scalar("total_loss", 2.0 - 0.1 * self.iter)
        if self.iter == self.stop_after:
            raise TrainingStopped("early")


class TestPictures:
    @pytest.fixture
    def drawn(self, monkeypatch):
        """Names of what was drawn in the place of predictions; drawing takes random numbers and changes modes."""
        names = []

        def draw(self, path):
            torch.rand(3), np.random.rand(3)
            self._model.eval()
            names.append(path.name)

        monkeypatch.setattr(RunPictures, "_draw_predictions", draw)
        return names

    def hook(self, folder, period):
        model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU())
        model[1].eval()
        return RunPictures(OmegaConf.create({"train": {"eval_period": period, "output_dir": str(folder)}}), model, 2)

    @pytest.mark.parametrize(
        ("period", "names"),
        [(2, ["0000001", "0000003", "0000004"]), (5, ["0000004"]), (0, ["0000004"])],
    )
    def test_at_each_evaluation_and_at_the_end(self, tmp_path, drawn, period, names):
        trainer = Trainer()
        trainer.register_hooks([self.hook(tmp_path, period)])
        (tmp_path / "metrics.json").write_text(json.dumps({"iteration": 0, "total_loss": 2.0}) + "\n")
        trainer.train(0, 5)
        assert drawn == [f"iter_{name}.png" for name in names]
        assert (tmp_path / "summary.png").read_bytes()[:4] == b"\x89PNG"

    def test_a_run_that_stops_early_has_its_last_predictions(self, tmp_path, drawn):
        trainer = Trainer(stop_after=3)
        trainer.register_hooks([self.hook(tmp_path, 100)])
        with pytest.raises(TrainingStopped):
            trainer.train(0, 9)
        assert drawn == ["iter_0000003.png"]

    def test_training_goes_on_as_without(self, tmp_path, drawn):
        hook = self.hook(tmp_path, 1)
        hook.trainer = SimpleNamespace(iter=0, max_iter=9, storage=EventStorage())
        torch.manual_seed(0)
        np.random.seed(0)
        expected = torch.rand(2), np.random.rand(2)
        torch.manual_seed(0)
        np.random.seed(0)
        hook.after_step()
        assert drawn == ["iter_0000000.png"]
        assert torch.equal(torch.rand(2), expected[0])
        assert np.array_equal(np.random.rand(2), expected[1])
        assert [module.training for module in hook._model] == [True, False]

    def test_what_cannot_be_drawn_is_a_warning(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(run_pictures, "predictions_figure", lambda *_, **__: pytest.fail("not reached"))
        trainer = Trainer()
        trainer.register_hooks([self.hook(tmp_path, 0)])  # the config has no model, no data
        trainer.train(0, 1)
        assert trainer.iter == 1
        said = [record.message for record in caplog.records if "could not be drawn, training goes on" in record.message]
        assert said[0].startswith(f"{tmp_path}/predictions/iter_0000000.png could not")

    @pytest.mark.parametrize("options", [{"images": 0}, {"images": True}, {"enabled": "yes"}, {"count": 3}])
    def test_options_are_checked(self, options):
        with pytest.raises(UserError, match=rf"train\.figures.*{next(iter(options))}"):
            read_figures(OmegaConf.create({"figures": options}))


class Run:
    def __init__(self, options):
        self.options, self.lines, self.ended, self.broken = options, [], None, False

    def define_metric(self, *_, **__):
        pass

    def log(self, line):
        if self.broken:
            raise ConnectionError("no network")
        self.lines.append(line)

    def finish(self, exit_code):
        self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """The package's part that is used, with what was sent."""
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None, origin="here")
    module.runs = []
    module.Settings = dict
    module.init = lambda **options: module.runs.append(Run(options)) or module.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


class TestWandb:
    def cfg(self, folder, **options):
        train = {"output_dir": str(folder), "wandb": {"enabled": True, **options}}
        return OmegaConf.create({"train": train, "model": {"_target_": torch.nn.ReLU}}, flags={"allow_objects": True})

    def write(self, cfg, start, losses, resume=False):
        writer = WandbWriter(read_wandb(cfg.train), cfg, resume=resume)
        with EventStorage(start) as storage:
            for loss in losses:
                storage.put_scalar("total_loss", loss, smoothing_hint=False)
                storage.put_scalar("lr", 0.5, smoothing_hint=False)
                writer.write()
                storage.step()
        return writer

    def test_scalars_go_there_once(self, wandb, tmp_path):
        self.write(self.cfg(tmp_path / "a run", mode="offline"), 0, [3.0, 2.0]).close()
        (run,) = wandb.runs
        assert run.lines == [
            {"total_loss": 3.0, "lr": 0.5, "iteration": 0},
            {"total_loss": 2.0, "lr": 0.5, "iteration": 1},
        ]
        assert (run.options["project"], run.options["name"], run.options["mode"]) == ("elsa_det", "a run", "offline")
        assert run.options["config"]["model"] == {"_target_": "torch.nn.modules.activation.ReLU"}
        assert run.ended == 0

    def test_a_resumed_run_is_the_same_there_and_a_new_one_is_not(self, wandb, tmp_path):
        for resume in (False, True, False):
            self.write(self.cfg(tmp_path), 0, [1.0], resume=resume)
        first, resumed, new = (run.options["id"] for run in wandb.runs)
        assert first == resumed != new

    def test_trouble_does_not_end_a_training(self, wandb, tmp_path, caplog):
        writer = self.write(self.cfg(tmp_path), 0, [1.0])
        wandb.runs[0].broken = True
        with EventStorage(1) as storage:
            for _ in range(3):
                storage.put_scalar("total_loss", 1.0)
                writer.write()
                storage.step()
        writer.close()
        warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert warnings == [
            "Weights & Biases failed to log, training goes on: ConnectionError('no network')",
            "Weights & Biases failed 3 times; metrics.json has everything",
        ]

    def test_a_failed_training_is_failed_there(self, wandb, tmp_path):
        writer = self.write(self.cfg(tmp_path), 0, [1.0])
        try:
            raise ValueError
        except ValueError:
            writer.close()
        assert wandb.runs[0].ended == 1

    def test_without_the_package(self, monkeypatch, tmp_path):
        monkeypatch.delitem(sys.modules, "wandb", raising=False)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match="is not installed: pip install wandb, or set train.wandb.enabled=False"):
            read_wandb(self.cfg(tmp_path).train)

    @pytest.mark.parametrize(
        "options", [{"mode": "sometimes"}, {"project": ""}, {"name": 3}, {"enabled": 1}, {"team": "x"}]
    )
    def test_options_are_checked(self, wandb, options, tmp_path):
        with pytest.raises(UserError, match=rf"train\.wandb.*{next(iter(options))}"):
            read_wandb(self.cfg(tmp_path, **options).train)

    def test_a_config_becomes_plain(self):
        cfg = OmegaConf.create({"a": "${b}", "b": [1, {"c": torch.nn.ReLU}]}, flags={"allow_objects": True})
        assert plain_config(cfg) == {
            "a": [1, {"c": "torch.nn.modules.activation.ReLU"}],
            "b": [1, {"c": "torch.nn.modules.activation.ReLU"}],
        }
        assert plain_config(OmegaConf.create({"a": "${nowhere}"})) == {"a": "${nowhere}"}
