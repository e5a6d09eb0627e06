# Needs python3 (3.11 or newer) with its venv module, and make. `make demo` and `make test` do all the rest.
PYTHON ?= python3
VENV ?= .venv
# processes of tests: as many as there are cores, from 2 to 4, as each may take a gigabyte
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2); echo $$((n < 2 ? 2 : n > 4 ? 4 : n)))
BENCH ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Programs that are started keep what Python makes of the sources: without that, each would make it anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-random test-large test-trust soak lint bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.demo ## convert a real data set, train Keras from it in both layouts, print the accuracy
	@$(BIN)/python examples/agaricus.py

test: $(VENV)/.dev ## every unmarked test, ruff and mypy among them
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.dev ## tests that take minutes
	@$(BIN)/python -m pytest -q -m slow

test-random: $(VENV)/.dev ## those tests of `make test` that draw their cases, with other cases each time
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --hypothesis-profile=random \
	  -m "hypothesis and not slow and not large and not trust"

test-large: $(VENV)/.dev ## tests that need gigabytes of disk
	@$(BIN)/python -m pytest -q -m large

test-trust: $(VENV)/.dev ## a sample of the campaigns of docs/reliability.md: 15 minutes
	@$(BIN)/python -m pytest -q -m trust

soak: $(VENV)/.dev ## all of these campaigns: hours; what was run is kept in .soak, run again to go on
	@cd tests && PYTHONPATH=.. ../$(BIN)/python -m trust soak --workers $(WORKERS)

lint: $(VENV)/.dev ## ruff and mypy alone
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.dev ## measure reading, checks, converting, parsing, transposing, to_tf, scale, start-up, verify: half an hour; BENCH="--scale 0.1": two
	@for file in read checks convert parse transpose to_tf scale startup verify; do \
	  echo "## $$file.py"; echo; $(BIN)/python bench/$$file.py $(BENCH) || exit 1; done

clean: ## remove all that the other targets made
	rm -rf $(VENV) .soak demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks *.egg-info
	find sparsestore tests examples bench -name __pycache__ -type d -prune -exec rm -rf {} +

# --no-compile: a third of the time of an installation goes into compiling modules most of which nobody imports. Python
# compiles the others at their first import.
# A stamp is newer than pyproject.toml when its extras are installed. The install is editable: sources need no re-install.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "installing sparsestore[tensorflow] into $(VENV) (some minutes the first time)"
	@$(PIP) install --no-compile --editable ".[tensorflow]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing sparsestore[tensorflow,dev] into $(VENV) (some minutes the first time)"
	@$(PIP) install --no-compile --editable ".[tensorflow,dev]"
	@touch $@ $(VENV)/.demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11: name a newer one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) has no venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
