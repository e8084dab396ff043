# Two commands do everything: `make quickstart` and `make test`. Both make .venv first, from the lock file.
SHELL := /bin/bash
VENV := .venv
# Not that of .venv where this is active: it has no pip, and `--clear` below would empty it under its own feet.
PYTHON ?= $(shell python3 -c 'import sys; print(sys.base_prefix + "/bin/python3" if sys.prefix == "$(CURDIR)/$(VENV)" else "python3")')
BIN := $(VENV)/bin
CORES ?= all
# For the recipes that run something; not exported, because $(PYTHON) must stay the system's.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"

# The preset to look at, e.g. `make estimate PRESET=paper`; that of config.yaml if empty.
PRESET ?=

.PHONY: help setup quickstart estimate test test-processors test-faults test-learning test-page bench lint docs format lock image sif test-containers slurm test-slurm clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The virtual environment has no pip of its own (Debian's python3 may lack ensurepip); the system's pip fills it.
$(VENV)/.complete: envs/requirements.lock pyproject.toml
	$(PYTHON) -m venv --without-pip --clear $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --require-hashes -r envs/requirements.lock --progress-bar off
	$(PYTHON) -m pip --python $(BIN)/python install --no-deps --no-build-isolation --editable . --progress-bar off
	touch $@

setup: $(VENV)/.complete ## make .venv alone: then `source .venv/bin/activate`

quickstart: $(VENV)/.complete ## set up, run the whole DAG on the embedded data, print the tables
	$(IN_VENV) snakemake --cores $(CORES)
	@cat results/tables.md
	@echo; echo "Tables: results/tables.md  Plots: results/plots/  All on one page: results/report.html"

estimate: $(VENV)/.complete ## what the runs of PRESET cost on this machine: views, hours, energy
	$(IN_VENV) wmse estimate $(if $(PRESET),--preset $(PRESET)) $(ESTIMATE_ARGS)

test: $(VENV)/.complete ## set up and run the tests
	$(IN_VENV) pytest --numprocesses 2 $(PYTEST_ARGS)

test-processors: $(VENV)/.complete ## the numerical tests as on other processors, which variables of the libraries emulate (minutes)
	$(IN_VENV) python tests/processors.py $(PYTEST_ARGS)

test-faults: $(VENV)/.complete ## every injected fault: kills, full disks, broken downloads, fuzzed input (minutes)
	$(IN_VENV) pytest tests/faults --long $(PYTEST_ARGS)

test-learning: $(VENV)/.complete ## every recipe in small learns: 5-nn before and after a training (an hour of one core)
	$(IN_VENV) pytest tests/training/test_learning.py --long $(PYTEST_ARGS)

test-page: $(VENV)/.complete ## report.html in a headless Chromium, which root on Debian 12 installs
	$(IN_VENV) tests/page/run.sh $(PYTEST_ARGS)

$(VENV)/.bench: $(VENV)/.complete envs/bench.lock
	$(PYTHON) -m pip --python $(BIN)/python install --require-hashes -r envs/bench.lock --progress-bar off
	touch $@

bench: $(VENV)/.bench ## all benchmarks on the device at hand, into results/benchmarks.md
	$(IN_VENV) python benchmarks/run.py $(BENCH_ARGS)

lint: $(VENV)/.complete ## ruff (lint and format), snakefmt, snakemake --lint, hadolint, shellcheck
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	$(IN_VENV) snakefmt --check workflow
	$(IN_VENV) snakemake --lint
	$(IN_VENV) hadolint Dockerfile
	$(IN_VENV) shellcheck docker/*.sh envs/*.sh tests/*/*.sh .ci/run

format: $(VENV)/.complete ## apply the formatters
	$(IN_VENV) ruff check --fix .
	$(IN_VENV) ruff format .
	$(IN_VENV) snakefmt workflow

$(VENV)/.docs: $(VENV)/.complete envs/docs.lock
	$(PYTHON) -m pip --python $(BIN)/python install --require-hashes -r envs/docs.lock --progress-bar off
	touch $@

docs: $(VENV)/.docs ## the documentation as a site in build/docs; a link or a name in it that leads nowhere is an error
	$(IN_VENV) NO_MKDOCS_2_WARNING=1 mkdocs build
	$(IN_VENV) python tools/check_site.py build/docs

LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
lock: ## resolve the dependencies again (needs uv): everything, and what the image needs at the same versions
	$(LOCK) --extra dev pyproject.toml --output-file envs/requirements.lock
	$(LOCK) --constraint envs/requirements.lock pyproject.toml --output-file envs/runtime.lock
	$(LOCK) --constraint envs/requirements.lock --extra bench pyproject.toml --output-file envs/bench.lock
	$(LOCK) --constraint envs/requirements.lock --extra docs pyproject.toml --output-file envs/docs.lock
	$(LOCK) --constraint envs/requirements.lock --extra slurm pyproject.toml --output-file envs/slurm.lock
	$(PYTHON) tools/conda_env.py > envs/wmse.yaml

IMAGE ?= wmse-repro
DOCKER ?= docker
# A dirty tree is no commit: the results would name the wrong source.
REVISION = $(shell git diff --quiet HEAD 2>/dev/null && git rev-parse HEAD || echo unknown)
image: ## build the Docker image wmse-repro (BASE_IMAGE=... for another base, BUILD_FLAGS=--no-cache)
	DOCKER_BUILDKIT=1 $(DOCKER) build $(BUILD_FLAGS) --network host $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
	  --build-arg REVISION=$(REVISION) --tag $(IMAGE) .
	@$(DOCKER) image inspect --format '{{.RepoTags}}: {{.Size}} bytes' $(IMAGE)

sif: ## make docker/wmse-repro.sif for --use-singularity from that image (ARCHIVE=FILE: from a `docker save`)
	DOCKER="$(DOCKER)" docker/sif.sh $(or $(ARCHIVE),$(IMAGE))

test-containers: $(VENV)/.complete ## build and test the image in Docker and Apptainer (WHOLE=1: with the whole quick preset)
	$(IN_VENV) tests/containers/run.sh $(PYTEST_ARGS)

$(VENV)/.slurm: $(VENV)/.complete envs/slurm.lock
	$(PYTHON) -m pip --python $(BIN)/python install --require-hashes -r envs/slurm.lock --progress-bar off
	touch $@

slurm: $(VENV)/.slurm ## make .venv able to run the DAG on a Slurm cluster (docs/cluster.md)

test-slurm: $(VENV)/.slurm ## the workflow on a real Slurm of three nodes, which root on Debian 12 starts itself
	$(IN_VENV) tests/slurm/run.sh $(PYTEST_ARGS)

clean: ## remove what the DAG generated for the current configuration (data and environment stay)
	$(IN_VENV) snakemake --cores 1 --delete-all-output
