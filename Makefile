# Every target makes .venv when it is missing and installs what it needs.
# PYTHON=python3.12 make test   uses another interpreter (3.11 or newer) for a new .venv.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test test-long check bench peers clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
		rm -rf .venv; echo "cannot make a virtual environment: on Debian, apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	@touch $@

demo: setup
	$(BIN)/python -m asyncnet demo

# The programs that tests/interop talks to; says in one line what it could not install.
peers:
	@sh tests/interop/install_peers.sh

# On two processors; what measures time has the machine for itself afterwards.
test: setup peers
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not long and not alone'
	$(BIN)/python -m pytest -m 'alone and not long'

# The proofs that take minutes: floods and losses on real segments, workers reloaded and killed under load, the laboratory.
test-long: setup peers
	$(BIN)/python -m pytest -m long

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The peers have an environment of their own; the package is installed there too, so that all run alike.
BENCH := .cache/bench

bench: $(BENCH)/.installed peers
	$(BENCH)/bin/python -m benchmarks

$(BENCH)/.installed: pyproject.toml benchmarks/requirements.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' -r benchmarks/requirements.txt
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache build dist
