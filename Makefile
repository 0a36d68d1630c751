# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up what it needs.
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell command -v python3.11 || command -v python3)

.PHONY: setup demo test check

setup: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml
	if command -v uv >/dev/null; then uv venv --clear -q --python 3.11 --seed $(VENV); \
	elif $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then $(PYTHON) -m venv --clear $(VENV); \
	else echo "robopolicy needs CPython 3.11 (or uv, which brings it): $(PYTHON) is another version" >&2; exit 1; fi
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip sync -q --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/robopolicy demo

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check robopolicy tests tools
	$(BIN)/mypy
	$(BIN)/lint-imports
