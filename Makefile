# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up what it needs. `make test-ros` runs the
# node on real ROS 1 and ROS 2, which it installs beside (ROS 1 as root on Debian 12), and skips what does not install.
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell command -v python3.11 || command -v python3)

# Compiled files are kept: without them every process that the tests start would compile PyTorch's sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-ros check

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
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-ros: setup
	tests/ros/install.sh $(BIN)/python .venv-ros1 .venv-ros2
	$(BIN)/python -m pytest -rs tests/ros/closed_loop.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check robopolicy tests tools
	$(BIN)/mypy
	$(BIN)/lint-imports
