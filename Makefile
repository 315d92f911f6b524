# Works with python3, python3-venv and make alone; everything else goes into .venv.
# A set-up is stamped with the hash of pyproject.toml: it is done again only when that changes.

PYTHON ?= python3
ONCE ?=
PORT ?= 8080
TESTS ?=
ROWS ?=
WHEEL ?=

BIN := .venv/bin
HASH := $(shell cksum < pyproject.toml | tr ' ' '-')
BASE := .venv/.ready-$(HASH)
DEV := .venv/.ready-dev-$(HASH)
BENCH := .venv/.ready-bench-$(HASH)

.PHONY: demo test chaos lint format wheel bundle states bench peers clean
.DEFAULT_GOAL := test

demo: $(BASE)
	$(BIN)/distributor demo --port $(PORT) $(if $(filter-out 0,$(ONCE)),--once)

test: lint
	$(BIN)/python -m pytest $(TESTS)

# Everything goes wrong at once, at full size: about ten minutes. CHAOS_SEED repeats a run's draws.
chaos: export CHAOS_N := $(or $(CHAOS_N),10000)
chaos: export CHAOS_KILLS := $(or $(CHAOS_KILLS),100)
chaos: export CHAOS_SEED := $(or $(CHAOS_SEED),$(shell od -An -N3 -tu4 /dev/urandom | tr -d ' '))
chaos: export CHAOS_REPORT := build/chaos.json
chaos: $(DEV)
	$(BIN)/python -m pytest tests/chaos -q

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(DEV)
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

# Figures of this machine into build/bench.json (tests/bench/README.md). Not part of the tests: nothing fails here.
bench: $(BENCH)
	$(BIN)/python -m tests.bench $(ROWS)

# One archive that installs where no package index can be reached. WHEEL: ours, if it is built already.
bundle: $(DEV)
	$(BIN)/python tools/bundle.py $(if $(WHEEL),--wheel $(WHEEL))

# The diagrams in the documents, from the moves tables.
states: $(BASE)
	$(BIN)/distributor states --write README.md
	$(BIN)/distributor states --write README.zh-CN.md

# Programs that some tests run against; needs root on Debian, and starts none of them.
peers:
	tools/peers

clean:
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing: install python3 (3.11 or newer), or set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), but Python 3.11 or newer is needed: set PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) can make no virtual environment: install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv

$(BASE): | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@rm -f .venv/.ready-*
	@touch $@

$(DEV): | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,cluster,bench]'
	@rm -f .venv/.ready-*
	@touch $(BASE) $@

$(BENCH): | $(DEV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	@touch $@
