# make quickstart: train, evaluate and look at a small Mask R-CNN. make test: the tests. Both set everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cat setup.py pyproject.toml | cksum | cut -d' ' -f1)
RUN ?= output/quickstart

.PHONY: setup quickstart test lint format clean

setup: $(READY)

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit("elsa_det needs Python 3.10 to 3.13, this is %d.%d: make PYTHON=python3.12 …" % sys.version_info[:2] if not (3, 10) <= sys.version_info[:2] <= (3, 13) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=68" wheel ninja
	$(BIN)/python -m pip install --quiet "torch>=2.8" "torchvision>=0.23"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	rm -f $(VENV)/.ready-*
	touch $@

quickstart: $(READY)
	$(BIN)/python datasets/prepare_quickstart.py
	$(BIN)/python tools/lazyconfig_train_net.py --config-file configs/quickstart/elsa_nano_mrcnn.py train.output_dir=$(RUN)
	$(BIN)/python tools/quickstart_report.py --run $(RUN)

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist output *.egg-info .pytest_cache .mypy_cache .ruff_cache
