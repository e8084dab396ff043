# Two commands do everything: `make quickstart` and `make test`. Both make .venv first, from the lock file.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all
# For the recipes that run something; not exported, because $(PYTHON) must stay the system's.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"

# The preset to look at, e.g. `make estimate PRESET=paper`; that of config.yaml if empty.
PRESET ?=

.PHONY: help quickstart estimate test lint format lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The virtual environment has no pip of its own (Debian's python3 may lack ensurepip); the system's pip fills it.
$(VENV)/.complete: envs/requirements.lock pyproject.toml
	$(PYTHON) -m venv --without-pip --clear $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --require-hashes -r envs/requirements.lock --progress-bar off
	$(PYTHON) -m pip --python $(BIN)/python install --no-deps --no-build-isolation --editable . --progress-bar off
	touch $@

quickstart: $(VENV)/.complete ## set up, run the whole DAG on the embedded data, print the tables
	$(IN_VENV) snakemake --cores $(CORES)
	@cat results/tables.md
	@echo; echo "Tables: results/tables.md  Plots: results/plots/"

estimate: $(VENV)/.complete ## what the runs of PRESET cost on this machine: views, hours, energy
	$(IN_VENV) wmse estimate $(if $(PRESET),--preset $(PRESET)) $(ESTIMATE_ARGS)

test: $(VENV)/.complete ## set up and run the tests
	$(IN_VENV) pytest $(PYTEST_ARGS)

lint: $(VENV)/.complete ## ruff (lint and format), snakefmt, snakemake --lint
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	$(IN_VENV) snakefmt --check workflow
	$(IN_VENV) snakemake --lint

format: $(VENV)/.complete ## apply the formatters
	$(IN_VENV) ruff check --fix .
	$(IN_VENV) ruff format .
	$(IN_VENV) snakefmt workflow

LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
lock: ## resolve the dependencies again (needs uv): everything, and what the image needs at the same versions
	$(LOCK) --extra dev pyproject.toml --output-file envs/requirements.lock
	$(LOCK) --constraint envs/requirements.lock pyproject.toml --output-file envs/runtime.lock
	$(LOCK) --constraint envs/requirements.lock --extra bench pyproject.toml --output-file envs/bench.lock

clean: ## remove what the DAG generated for the current configuration (data and environment stay)
	$(IN_VENV) snakemake --cores 1 --delete-all-output
