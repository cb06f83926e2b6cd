# Everything from nothing but python3: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed
# A process a core, each with one thread (tests/conftest.py). Each takes from the others what they have not begun.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test unit lint docs clean

# What the demo needs.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) -c constraints.txt -e .
	touch $@

# What tests, linting and the documentation need. asmk is built from source; its comparison is skipped without it.
$(DEVELOPED): $(INSTALLED)
	$(PIP) -c constraints.txt -e ".[dev]"
	$(PIP) -c constraints.txt -e ".[peers]" || echo "asmk cannot be built here: a C compiler is needed"
	touch $@

demo: $(INSTALLED)
	$(BIN)/hardnet-sfm demo --workspace demo-out

test: lint
	$(PYTEST)

unit: $(DEVELOPED)
	$(PYTEST) -m "not slow"

lint: $(DEVELOPED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DEVELOPED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo-out site
