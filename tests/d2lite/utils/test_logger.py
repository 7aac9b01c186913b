"""Loggers."""

from __future__ import annotations

import logging
import re

import pytest
from d2_access import d2_module

from elsa_det.d2 import setup_logger


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def test_file_and_terminal(tmp_path, capsys):
    logger = setup_logger(str(tmp_path), name="zoo", abbrev_name="z", color=False)
    assert setup_logger(str(tmp_path), name="zoo", abbrev_name="z", color=False) is logger
    assert len(logger.handlers) == 2
    logging.getLogger("zoo.cage").warning("lion is out")
    expected = r"\[\d\d/\d\d \d\d:\d\d:\d\d\] (z|zoo)\.cage WARNING: lion is out\n"
    assert re.fullmatch(expected, capsys.readouterr().out)
    assert re.fullmatch(expected, (tmp_path / "log.txt").read_text())


def test_other_ranks_write_their_own_file_only(tmp_path, capsys):
    logger = setup_logger(str(tmp_path / "a.log"), distributed_rank=2, name="zoo_of_rank_2")
    logger.info("hello")
    assert "hello" in (tmp_path / "a.log.rank2").read_text()
    assert capsys.readouterr().out == ""


def test_colours(capsys):
    logger = setup_logger(name="colour_zoo", abbrev_name="")
    logging.getLogger("colour_zoo.cage").info("calm")
    logger.error("chaos")
    calm, chaos = capsys.readouterr().out.splitlines()
    assert re.search(r"\d cage\]: ", calm)
    assert calm.endswith("calm")
    assert re.search(r"ERROR.*chaos$", chaos)


def test_default_covers_the_provider(capsys):
    assert setup_logger().name == "detectron2"
    logging.getLogger(d2_module("utils.comm").__name__).info("seen once")
    logging.getLogger("detectron2.somebody").info("me too")
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"(d2\.\S+)\]: ", line)[1] for line in lines] == ["d2.utils.comm", "d2.somebody"]
    for name in ("detectron2", d2_module("utils").__name__.rpartition(".")[0]):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    setup_logger.cache_clear()


def test_repeated_messages(said):
    logger = d2_module("utils.logger")
    for index in range(5):
        logger.log_first_n(logging.INFO, f"first {index}", n=2)
        logger.log_every_n(logging.INFO, f"every {index}", n=3)
        logger.log_every_n_seconds(logging.INFO, f"seconds {index}", n=60)
        logger.log_first_n(logging.INFO, "same message", key="message")
    logger.log_first_n(logging.INFO, "same message", key="message")
    logger.log_first_n(logging.INFO, "same message", key=("caller", "message"))
    assert said() == ["first 0", "every 0", "seconds 0", "same message", "first 1", "every 3", "same message"]


def test_small_table():
    assert d2_module("utils.logger").create_small_table({"AP": 12.34567, "AR": 2}).splitlines() == [
        "|   AP   |  AR  |",
        "|:------:|:----:|",
        "| 12.346 |  2   |",
    ]
