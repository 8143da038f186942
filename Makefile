PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export DIGITALSTADT_DATA ?= $(CURDIR)/data
export DAGSTER_HOME ?= $(CURDIR)/.dagster
export GX_ANALYTICS_ENABLED := false

.PHONY: run test ui lint bench audit clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

run: $(BIN)/.installed ## demo city: a year of exports, through the pipeline, to open data
	$(BIN)/digitalstadt quickstart

test: $(BIN)/.installed
	$(BIN)/python -m pytest -m 'not audit'

ui: $(BIN)/.installed ## Dagster on http://127.0.0.1:3000
	mkdir -p $(DAGSTER_HOME) && cp dagster.yaml $(DAGSTER_HOME)/
	$(BIN)/dagster dev -h 127.0.0.1 -p 3000 -w workspace.yaml

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(BIN)/.installed ## long statistical checks
	$(BIN)/python -m pytest -m audit

bench: $(BIN)/.installed ## timings of the demo city's year
	$(BIN)/digitalstadt bench

clean:
	rm -rf data .dagster
