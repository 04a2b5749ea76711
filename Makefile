# Two commands on a fresh machine: `make demo` and `make test`; both set up what they need.
VENV ?= .venv
PYTHON ?= python3
PIP_FLAGS ?=
BIN := $(VENV)/bin
# A scene to encode: one that is given, else a real one from beside the checkout, else a rendered one.
SCENE ?= $(firstword $(wildcard ../shared/data/scenes/sentinel2_alberta.tif))

.PHONY: demo test lint setup clean

setup: $(VENV)/.done

# torch comes first and by the version of constraints.txt. To spare a machine without a GPU the
# gigabytes of CUDA, say where its CPU build lies: make test PIP_FLAGS="--extra-index-url ..."
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_FLAGS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_FLAGS) --editable ".[dev]"
	touch $@

demo: setup
	MPLBACKEND=agg $(BIN)/nec demo $(if $(SCENE),--scene "$(SCENE)") --out demo_output

test: setup lint
	MPLBACKEND=agg $(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check nec pipelines tests docs/tutorials
	$(BIN)/ruff format --check nec pipelines tests docs/tutorials
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo_output build dist .mypy_cache .ruff_cache .pytest_cache
