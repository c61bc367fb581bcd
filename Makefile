# PTP-Bench. Every target sets up what it needs. ARGS="..." hands more flags to a command.

PYTHON ?= python3
BIN    := .venv/bin
BENCH  := $(BIN)/python -m bench

TARGET ?= smollm2-135m

.DEFAULT_GOAL := help
.PHONY: help .venv bench smoke test lint microbench quality cost report compare world

help: ## this list
	@awk -F ':.*## ' '/^[.a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv: .venv/installed ## the virtual environment with everything in it

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

bench: .venv ## the benchmark: default model, four questions per task, a table at the end (minutes)
	$(BENCH) run $(ARGS)

smoke: .venv ## the same with a tiny random model, to see that everything works (seconds)
	$(BENCH) run --suite smoke $(ARGS)

test: .venv ## all tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

lint: .venv ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

microbench: .venv ## one step by phases, and the loop against one written by hand (TARGET=model)
	TARGET=$(TARGET) $(BIN)/python -m pytest tests/microbench -o python_files='bench_*.py' --benchmark-only $(ARGS)

quality: .venv ## quality beside speed, on the bundled items (minutes)
	$(BENCH) quality --target $(TARGET) $(ARGS)

cost: .venv ## memory and energy of each method, alone in its process
	$(BENCH) cost --target $(TARGET) $(ARGS)

report: .venv ## RUN=directory: its tables and figures once more
	$(BENCH) report $(RUN) $(ARGS)

compare: .venv ## OLD=directory NEW=directory: a gate for regressions
	$(BENCH) compare $(OLD) $(NEW) $(ARGS)

world: .venv ## train every method on a small world, and see where parallel prediction must win
	$(BENCH) world $(ARGS)
