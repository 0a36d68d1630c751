# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up what it needs.
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell command -v python3.11 || command -v python3)

.PHONY: setup demo test check smoke clean

setup: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml
	if command -v uv >/dev/null; then uv venv --clear -q --python 3.11 --seed $(VENV); else $(PYTHON) -m venv --clear $(VENV); fi
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
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) dist
