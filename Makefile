# make quickstart: train, evaluate and look at a small Mask R-CNN. make test: the tests. Both set everything up first.
# The operator's CUDA part is built where a GPU is; make cuda builds it anywhere. ELSA_DET_CUDA=1 or 0 decides by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(sort $(shell find kernels -name '*.py' -o -name '*.c*' -o -name '*.h'))
READY := $(VENV)/.ready-$(shell cat $(SOURCES) | cksum | cut -d' ' -f1)
ifndef ELSA_DET_CUDA
export ELSA_DET_CUDA := $(shell nvidia-smi >/dev/null 2>&1 || echo 0)
endif
RUN ?= output/quickstart

.PHONY: setup cuda quickstart test web-test soak lint format docs clean

setup: $(READY)

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit("elsa_det needs Python 3.10 to 3.13, this is %d.%d: make PYTHON=python3.12 …" % sys.version_info[:2] if not (3, 10) <= sys.version_info[:2] <= (3, 13) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=70.1" wheel
	$(BIN)/python -m pip install --quiet "torch>=2.8" "torchvision>=0.23"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	$(BIN)/python -c 'import elsa_det.ops; print("The operator:", *elsa_det.ops.backends(), sep="\n  ")'
	rm -f $(VENV)/.ready-*
	touch $@

cuda: $(READY)
	ELSA_DET_CUDA=1 $(BIN)/python kernels/build_kernels.py

quickstart: $(READY)
	$(BIN)/python datasets/prepare_quickstart.py
	$(BIN)/python tools/lazyconfig_train_net.py --config-file configs/quickstart/elsa_nano_mrcnn.py train.output_dir=$(RUN)
	$(BIN)/python tools/quickstart_report.py --run $(RUN)

# a file of tests after the other in each of two processes, of one thread each
test: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python -c 'import material' 2>/dev/null || $(BIN)/python -m pip install --quiet "mkdocs-material>=9.6"
	$(BIN)/python tools/make_docs.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# what tests/engine/test_demo_web.py needs beside chromium and chromedriver
web-test: $(READY)
	$(BIN)/python -c 'import gradio, selenium' 2>/dev/null || $(BIN)/python -m pip install --quiet "gradio>=6" "selenium>=4"

# long checks outside CI: damaged files, a hundred thousand inputs for each reader
soak: $(READY)
	$(BIN)/python tests/soak/fuzz.py --inputs 100000
	$(BIN)/python tests/soak/two_hosts.py
	$(BIN)/python tests/soak/kills.py --kills 20 --output build/kills
	$(BIN)/python tests/soak/long_run.py --output build/long_run

clean:
	rm -rf build dist output *.egg-info .pytest_cache .mypy_cache .ruff_cache
