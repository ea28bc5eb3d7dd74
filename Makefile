# Two commands for a fresh machine: `make demo` shows the main job, `make test` runs the tests.
# Each makes .venv and installs what it needs.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PYTEST  = $(BIN)/python -m pytest
PEERS  ?= build/bench-peers
CORE    = $(wildcard shm/*.c shm/*.h)

.PHONY: demo test crash e2e numa sanitize model lint types bench bench-quick bench-peers bench-report \
        check build clean

demo: $(VENV)/ready
	$(BIN)/uniflight-mp demo

test: $(VENV)/ready
	$(PYTEST) tests --ignore=tests/crash --ignore=tests/e2e --ignore=tests/numa

# A process is killed and stopped at every commit write of the core, and at random.
crash: $(VENV)/ready
	$(PYTEST) tests/crash

# Real servers on loopback.
e2e: $(VENV)/ready
	$(PYTEST) tests/e2e

# A Linux kernel with three NUMA nodes, in QEMU; build/numa/report is what was seen in it.
numa: $(VENV)/ready
	$(PYTEST) tests/numa

# The C core without Python, under ASan, UBSan and TSan, single-stepped and fuzzed.
sanitize:
	$(MAKE) -C tests/c all

# The protocol in spin: every interleaving of small configurations, deaths included.
model:
	$(PYTHON) tests/model/run.py --quick

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/lint
	$(BIN)/mypy

bench: $(VENV)/bench
	$(BIN)/python -m bench

# Does every figure run? The numbers are of little use, and kept apart from those of `make bench`.
bench-quick: $(VENV)/bench
	$(BIN)/python -m bench --quick --save-baseline quick

# docs/benchmarks.md with its pictures, from what the last `make bench` has kept.
bench-report: $(VENV)/bench-report
	$(BIN)/python -m bench.document

# Beside everybody who offers the same, in an environment of its own, with a real Redis.
bench-peers: $(PEERS)/ready
	$(PEERS)/bin/python -m bench peers

check: lint types test crash e2e numa sanitize model

build: $(VENV)/ready
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build

$(VENV)/ready: pyproject.toml $(CORE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/lint: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --group lint
	touch $@

# The format of results, and the libraries we are measured against.
$(VENV)/bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

$(VENV)/bench-report: $(VENV)/bench
	$(BIN)/python -m pip install --quiet --group bench-report
	touch $@

# Debian's package would start its service; in run level 1 it does not. We start our own.
$(PEERS)/ready: pyproject.toml $(CORE)
	command -v redis-server >/dev/null || { apt-get update -q && \
	  RUNLEVEL=1 apt-get install -qy --no-install-recommends redis-server; }
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet --editable . --group peers
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info uniflight_mp/*.so
