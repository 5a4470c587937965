# `make demo` runs the main job, `make test` passes the tests; both from nothing but Python 3.11.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint format stubs lock install install-dev
.DEFAULT_GOAL := demo

demo: install
	$(BIN)/understudy demo

test: install-dev
	$(BIN)/python -m pytest

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The gRPC stubs, from proto/; tests fail when the committed ones are stale.
stubs: install-dev
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. \
		proto/understudy/v1/*.proto

# The locks, from pyproject.toml. torch comes from wherever pip finds it, so `train` has no hashes.
lock: $(VENV)
	$(PIP) uv
	for extra in dev gpu; do \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
			--no-header --no-annotate --no-emit-index-url --no-emit-find-links \
			--extra $$extra pyproject.toml requirements/build.in -o requirements/$$extra.txt \
			|| exit 1; done
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		pyproject.toml requirements/build.in -c requirements/dev.txt -o requirements/base.txt
	$(BIN)/uv pip compile --quiet --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		$(addprefix --find-links ,$(PIP_FIND_LINKS)) --extra train \
		pyproject.toml requirements/build.in requirements/train.in -o requirements/train.txt
	sed -i 's/^torch==\(.*\)+cpu$$/torch==\1/' requirements/train.txt

install: $(VENV)/base.stamp
install-dev: $(VENV)/dev.stamp

$(VENV):
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.stamp: requirements/%.txt pyproject.toml | $(VENV)
	$(PIP) --require-hashes -r requirements/$*.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@
