# `make` shows the targets. All of them can be repeated; each continues what was interrupted.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13,$(shell command -v python$(v) 2>/dev/null)) python3)
VENV ?= .venv
CONFIG ?=
DEVICE ?=
PROFILE ?=
TORCH ?=
version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
lock := envs/lock-py$(version).txt
bin := $(VENV)/bin
snakemake := $(bin)/python workflow_scripts/run_together.py $(if $(PROFILE),--profile $(PROFILE)) $(if $(CONFIG),--configfile $(CONFIG))

.DEFAULT_GOAL := help
.PHONY: help setup demo run why plan slurm-check slurm-table test test-slurm lint format schema envs clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(VENV)/.ready: $(lock) pyproject.toml
	@test -f $(lock) || { echo "There is no lock for $(PYTHON) ($(or $(version),it cannot be run)). Choose one with 'make PYTHON=python3.11 ...'; there are:" envs/lock-py*.txt; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON) ($(version)) from $(lock)"
	@$(PYTHON) -m venv $(VENV)
	@$(bin)/python -m pip install --quiet --disable-pip-version-check --requirement $(lock)
	@$(if $(TORCH),$(bin)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --requirement envs/torch-$(TORCH).txt)
	@$(bin)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

$(lock):

setup: $(VENV)/.ready ## create .venv with the locked dependencies and the package

demo: setup ## run the demo: no downloads, a quarter of an hour on two cores
	@$(bin)/python workflow_scripts/unlock_stale.py
	@$(bin)/python workflow_scripts/run_together.py --quiet rules host
	@echo; cat results/demo/tables/table2.md; echo
	@echo "Done. Tables, figures and metrics: results/demo/ (results/README.md says what is where)."

run: setup ## run a configuration: make run CONFIG="config/rmd17.yaml config/overlays/forceuq-small.yaml"
	@$(bin)/python workflow_scripts/unlock_stale.py $(if $(CONFIG),--configfile $(CONFIG))
	@$(snakemake)

why: setup ## say what would run, and why: make why CONFIG=...
	@$(bin)/python -m rerun_reasons $(if $(CONFIG),--configfile $(CONFIG))

plan: setup ## say what a run will cost: make plan CONFIG=... [DEVICE="records in benchmarks/throughput/"]
	@$(bin)/python workflow_scripts/plan.py $(if $(CONFIG),--configfile $(CONFIG)) $(if $(DEVICE),--device $(DEVICE))

slurm-check: setup ## ask the cluster about itself: write slurm/site.yaml, or check the one there is
	@$(bin)/python workflow_scripts/slurm_check.py

slurm-table: setup ## write docs/slurm-resources.md: what every rule asks for
	@$(bin)/python docs/slurm_resources.py

test: setup ## run the test suite
	@OMP_NUM_THREADS=1 $(bin)/python -m pytest -n 2 --dist loadfile

test-slurm: setup ## what clusters do to jobs, done to a real Slurm (docs/slurm-tests.md)
	@OMP_NUM_THREADS=1 $(bin)/python -m pytest tests/slurm -m "slurm or slurm_faults" -n 3 --dist load --maxschedchunk 1

lint: setup ## ruff, mypy, snakefmt, snakemake --lint
	@$(bin)/ruff check . && $(bin)/ruff format --check .
	@$(bin)/mypy
	@$(bin)/snakefmt --check Snakefile rules
	@$(bin)/snakemake --lint
	@echo "Lint passed."

format: setup ## format Python and Snakemake files
	@$(bin)/ruff check --fix . ; $(bin)/ruff format . ; $(bin)/snakefmt Snakefile rules

schema: setup ## write config/schema/ from the configuration's models
	@$(bin)/python -m forceuq.configuration.schema config/schema

envs: setup ## write the conda environments from the lock
	@$(bin)/python envs/conda_from_lock.py

clean: ## remove results and caches, not .venv
	@rm -rf results/*/ results/*.json logs .snakemake
