PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export DIGITALSTADT_DATA ?= $(CURDIR)/data
export DAGSTER_HOME ?= $(CURDIR)/.dagster
export GX_ANALYTICS_ENABLED := false

.PHONY: run test audit ui lint clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

run: $(BIN)/.installed ## what the release plan costs and how accurate it will be; then a run of yesterday
	$(BIN)/digitalstadt keys
	$(BIN)/digitalstadt plan
	$(BIN)/digitalstadt run

test: $(BIN)/.installed
	$(BIN)/python -m pytest

audit: $(BIN)/.installed ## mutants of the consent rule and the contribution bounds: none may let anybody in (minutes)
	$(BIN)/python tests/mutation/mutate.py

ui: $(BIN)/.installed ## Dagster on http://127.0.0.1:3000
	mkdir -p $(DAGSTER_HOME) && cp dagster.yaml $(DAGSTER_HOME)/
	$(BIN)/dagster dev -h 127.0.0.1 -p 3000 -w workspace.yaml

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf data .dagster
