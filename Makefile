# `make quickstart` shows the whole thing on sample data; `make test` is what CI runs.  CONTRIBUTING.md has the tour.

PYTHON ?= python3
# More options for pip, for example PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for torch without CUDA.
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT := outputs/quickstart
BENCH := results/bench

# As in an activated environment: `mlflow models serve` and Ray jobs start programs by name.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env quickstart picture test test-fast test-full check format bench docs wheel clean

help:
	@echo "make quickstart   build a sample dataset, train, evaluate, compress it, write a report (about 5 minutes)"
	@echo "make test         unit and Ray tests, as CI runs them"
	@echo "make test-fast    unit tests only, about a minute"
	@echo "make test-full    all tests, the slow ones too"
	@echo "make check        ruff and mypy"
	@echo "make format       let ruff rewrite the code"
	@echo "make bench        speed and memory, and a page of them, results/bench/README.md (an hour or more);"
	@echo "                  DATA=folder measures on a dataset, REFERENCE=plain.py beside a plain implementation"
	@echo "make docs         the documentation as a site, in site/"
	@echo "make wheel        the project as one file for a cluster's machines, with its constraints, in dist/"
	@echo "make clean        remove the environment, caches and outputs/quickstart"

env: $(READY)

# Made again whenever the requirements change; a half-made environment has no stamp, so it is made from the start.
$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV): some minutes"
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev,export,ingest,serve,sources,stores]'
	touch $@

# Starts from nothing every time, so that what it prints was made by this tree; on a part of the sample, to take minutes.
quickstart: $(READY)
	rm -rf $(OUT)
	$(BIN)/smec sample $(OUT)/data --size 6000
	$(BIN)/smec train --data $(OUT)/data --dims 256,128,64,32 --workers 2 --out $(OUT)/model
	$(BIN)/smec compress --model $(OUT)/model --input $(OUT)/data/corpus --output $(OUT)/compressed --dim 64
	$(BIN)/smec report $(OUT)/model --out $(OUT)/report.html
	$(BIN)/smec evaluate --data $(OUT)/data --model $(OUT)/model --baselines --json $(OUT)/evaluation.json
	@echo "report: $(OUT)/report.html   compressed corpus: $(OUT)/compressed   figures: $(OUT)/evaluation.json"

# The picture in docs/index.md, from the last quickstart.
picture: $(READY)
	mkdir -p docs
	$(BIN)/python -c "import json; from pipelines.tracking.plots import quality_picture; \
	    quality_picture(json.load(open('$(OUT)/evaluation.json'))).savefig('docs/quickstart.png', dpi=120)"

# What uses Ray, servers or several processes runs in two processes, a file in one of them, so that fixtures are shared.
test: test-fast
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and (ray or server or training)"

test-fast: $(READY)
	$(BIN)/pytest -n auto -m "not slow and not ray and not server and not training"

test-full: $(READY)
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks.bench --out $(BENCH) $(if $(DATA),--data $(DATA)) $(if $(REFERENCE),--reference $(REFERENCE))

docs: $(READY)
	DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet $(PIP_ARGS) --no-deps --wheel-dir dist .
	rm -rf build
	cp constraints.txt dist/

clean:
	rm -rf $(VENV) $(OUT) build dist site .mypy_cache .pytest_cache .ruff_cache *.egg-info
