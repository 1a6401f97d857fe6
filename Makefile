# Every target makes what it needs: .venv from PyPI alone, then the work.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONPATH :=
# Services are started hundreds of times by a run of the tests; whoever forbids bytecode pays a fifth of a second for each.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help up demo test faults timescale check gen bench fmt clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

up: $(VENV)/core ## Start the whole mesh and keep it running
	@$(BIN)/python -m services.web.build || true # the mesh runs without its page, and says so
	@$(BIN)/tradeloom up $(ARGS)

demo: $(VENV)/core ## Trade once through the mesh, starting it if it is not running
	@$(BIN)/tradeloom demo BTCUSDT 0.25 --order-type market $(ARGS)

test: $(VENV)/dev ## Run every test against real servers, three at a time (ARGS="-k name" for some)
	@$(BIN)/python -m pytest --numprocesses 3 --no-loadscope-reorder $(ARGS)

faults: $(VENV)/dev ## Kill, cut and confuse whatever can be, in the long forms too (ARGS="-k name" for some)
	@$(BIN)/python -m pytest --numprocesses 2 --long -m "long or examples" $(ARGS)

timescale: $(VENV)/dev ## Test the market's record on TimescaleDB, in a Debian that root makes with debootstrap (ARGS="-k name" for some)
	@$(BIN)/python -m tests.timescale $(ARGS)

check: $(VENV)/dev ## Lint, types, architecture, contract
	@$(BIN)/python -m libs.codegen.check

gen: $(VENV)/dev ## Regenerate gen/ from proto/
	@$(BIN)/python -m libs.codegen

bench: $(VENV)/dev ## Measure side by side (NAME=edge for one)
	@$(BIN)/python -m bench $(NAME)

fmt: $(VENV)/dev ## Format the code and the contract
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix --quiet . ; $(BIN)/buf format -w proto

clean: ## Remove what make made, but not the data folder
	@rm -rf $(VENV) third_party dist

$(VENV)/pip:
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade pip
	@touch $@

$(VENV)/core: $(VENV)/pip pyproject.toml constraints.txt
	@echo "installing Tradeloom into $(VENV) ..."
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/dev: $(VENV)/core
	@echo "installing the tools for tests into $(VENV) ..."
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@
