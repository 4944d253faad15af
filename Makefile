# SPDX-License-Identifier: MIT
# Thin front for the tools that do the work: tools/setup.sh, pip with meson-python, pytest, ruff, daxfs.
# `make quickstart` and `make test` work on a fresh Debian or Ubuntu as root or with sudo.

VENV   := .venv
PYTHON ?= python3
PIP    := $(VENV)/bin/pip
# What runs as root leaves nothing of root's in a user's checkout: no byte code, no caches.
SUDO   := $(shell [ $$(id -u) = 0 ] || \
            echo sudo env PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/run/daxfs-hypothesis)
PYTEST := $(VENV)/bin/pytest $(if $(SUDO),-p no:cacheprovider)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
SOURCES := pyproject.toml meson.build $(shell find daxfs docs/man -type f -not -name '*.pyc' 2>/dev/null)
# The build that the other targets use: make test BUILD=debug
BUILD  := build
EXPERIMENTS := fsync_sweep fault_sweep s17 fio_suite xfs_io_suite
INSTALL := $(PIP) install -q --no-build-isolation --no-deps --config-settings=build-dir=build

.PHONY: help build debug test test-fast test-long test-vm crash bench lint docs dist quickstart unquickstart clean \
        sweep experiments

help:
	@echo 'make quickstart    install what is missing, build, mount an emulated region, try it'
	@echo 'make unquickstart  undo it'
	@echo 'make test          the same set-up, then all tests; test-fast: without the slow ones; test-long: also what'
	@echo '                   repeats others at length (all of the POSIX table by each transport, benchmarks)'
	@echo 'make test-vm       daxfs on an emulated NVDIMM, in a QEMU guest (docs/vm.md; up to 30 minutes)'
	@echo 'make crash         60 rounds of kill -9 under load; then power failures at every point of short'
	@echo '                   sequences of operations (up to an hour, goes on where it was stopped)'
	@echo 'make bench         what is promised about speed, measured'
	@echo 'make sweep         what fsync costs, by every policy, in small: build/lab/fsync_sweep-quick/report.html (a minute)'
	@echo 'make build         build and install into $(VENV); debug: not optimised, with symbols and assertions'
	@echo 'make experiments   all experiments as a whole, hours: build/lab/report/report.html'
	@echo 'make lint          ruff and the tests of style'
	@echo 'make docs          check the manual pages, make HTML of them in build/docs'
	@echo 'make dist          sdist and wheel, in dist'
	@echo 'make clean         remove what make made'
	@echo 'BUILD=debug with test, test-fast, crash or bench takes the debug build for them.'

# Dependencies first and by themselves: the Makefile builds daxfs without isolation, to build only what changed.
$(VENV)/.tools: tools/setup.sh tools/requirements.py pyproject.toml
	tools/setup.sh
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python tools/requirements.py > $(VENV)/requirements.txt
	$(PIP) install -q -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.tools $(SOURCES)
	$(INSTALL)/release .
	rm -f $(VENV)/.debug
	touch $@

$(VENV)/.debug: $(VENV)/.tools $(SOURCES)
	$(INSTALL)/debug --config-settings=setup-args=-Dbuildtype=debug .
	rm -f $(VENV)/.built
	touch $@

build: $(VENV)/.built

debug: $(VENV)/.debug

test: $(BUILD)
	$(SUDO) $(PYTEST) tests

test-long: $(BUILD)
	$(SUDO) $(PYTEST) tests --long

test-fast: $(BUILD)
	$(SUDO) $(PYTEST) tests -m 'not slow' -x

# Builds daxfs by itself, for the guest.
test-vm: $(VENV)/.tools
	tools/setup.sh vm
	$(SUDO) $(VENV)/bin/python -P tools/vm/run.py $(CASES)

crash: $(BUILD)
	$(SUDO) $(VENV)/bin/python tools/kill9.py --rounds 60 --transport all
	$(VENV)/bin/python tools/crash_sweep.py

bench: $(BUILD)
	$(SUDO) $(VENV)/bin/python tools/bench/flush.py
	$(SUDO) $(VENV)/bin/python tools/bench/requests.py
	$(SUDO) $(VENV)/bin/python tools/bench/handshake.py
	$(SUDO) $(VENV)/bin/python tools/bench/namespace.py
	$(SUDO) $(VENV)/bin/python tools/bench/names.py
	$(SUDO) $(VENV)/bin/python tools/bench/mappings.py
	$(SUDO) $(VENV)/bin/python tools/bench/mount_time.py
	$(SUDO) $(VENV)/bin/python tools/bench/record.py
	$(SUDO) $(VENV)/bin/python tools/bench/emulate.py
	$(SUDO) $(VENV)/bin/python tools/bench/transport.py
	$(SUDO) $(VENV)/bin/python tools/bench/direct.py
	$(SUDO) $(VENV)/bin/python tools/bench/fsync.py
	$(SUDO) $(VENV)/bin/python tools/bench/state.py
	$(SUDO) $(VENV)/bin/python tools/bench/flushers.py
	$(SUDO) $(VENV)/bin/python tools/bench/tracker.py
	$(SUDO) $(VENV)/bin/python tools/bench/faults.py
	$(SUDO) $(VENV)/bin/python tools/bench/persist.py
	$(SUDO) $(VENV)/bin/python tools/s17.py --family ways --target --anew --output build/lab/s17-bench

# The directory is made first, so that it is the user's, as are the figures.
# What docs/experiments has, anew: one after the other, the report at the end. Goes on where it was stopped.
experiments: $(BUILD)
	for name in $(EXPERIMENTS); do \
	    mkdir -p build/lab/$$name; \
	    $(SUDO) $(VENV)/bin/python tools/$$name.py --output build/lab/$$name || exit 1; \
	done
	$(VENV)/bin/python tools/plot_sweep.py $(EXPERIMENTS:%=build/lab/%) --output build/lab/report

sweep: $(BUILD)
	mkdir -p build/lab/fsync_sweep-quick
	$(SUDO) $(VENV)/bin/python tools/fsync_sweep.py --quick --anew
	$(VENV)/bin/python tools/plot_sweep.py build/lab/fsync_sweep-quick

lint: $(BUILD)
	$(VENV)/bin/ruff check .
	$(PYTEST) -q tests/t0_layout

docs: $(VENV)/.tools
	mandoc -T lint -W warning docs/man/*.[1-8]
	mkdir -p build/docs
	for page in docs/man/*.[1-8]; do mandoc -T html $$page > build/docs/$$(basename $$page).html; done

dist: $(VENV)/.tools
	$(PIP) install -q build
	$(VENV)/bin/python -m build --outdir dist .

quickstart: $(BUILD)
	-$(SUDO) $(VENV)/bin/daxfs install-links
	$(SUDO) $(VENV)/bin/daxfs quickstart

unquickstart:
	@if [ -x $(VENV)/bin/daxfs ]; then \
	    $(SUDO) $(VENV)/bin/daxfs quickstart --undo && $(SUDO) $(VENV)/bin/daxfs install-links --remove; \
	else echo 'nothing done: $(VENV)/bin/daxfs is gone (make build brings it back)'; fi

clean:
	$(if $(wildcard build/vm),$(SUDO) rm -rf build/vm)
	rm -rf build dist $(VENV)
