# SPDX-License-Identifier: MIT
# Thin front for the tools that do the work: tools/setup.sh, pip with meson-python, pytest, ruff, daxfs.
# `make quickstart` and `make test` work on a fresh Debian or Ubuntu as root or with sudo.

VENV   := .venv
PYTHON ?= python3
PIP    := $(VENV)/bin/pip
PYTEST := $(VENV)/bin/pytest
SUDO   := $(shell [ $$(id -u) = 0 ] || echo sudo)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
SOURCES := pyproject.toml meson.build $(shell find daxfs docs/man -type f -not -name '*.pyc' 2>/dev/null)
BUILD_TOOLS := 'meson-python>=0.17' 'Cython>=3.1' 'meson>=1.6' 'ninja>=1.11'

.PHONY: help build debug test test-fast crash bench lint docs dist quickstart unquickstart clean

help:
	@echo 'make quickstart    install what is missing, build, mount an emulated region, try it'
	@echo 'make unquickstart  undo it'
	@echo 'make test          the same set-up, then all tests; test-fast: without the slow ones'
	@echo 'make crash         50 rounds of kill -9 under load'
	@echo 'make bench         what is promised about speed, measured'
	@echo 'make build debug lint docs dist clean'

$(VENV)/.tools: tools/setup.sh
	tools/setup.sh
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(BUILD_TOOLS)
	touch $@

$(VENV)/.built: $(VENV)/.tools $(SOURCES)
	$(PIP) install -q --no-build-isolation -Cbuild-dir=build/release '.[test]'
	rm -f $(VENV)/.debug
	touch $@

$(VENV)/.debug: $(VENV)/.tools $(SOURCES)
	$(PIP) install -q --no-build-isolation -Cbuild-dir=build/debug -Csetup-args=-Dbuildtype=debug '.[test]'
	rm -f $(VENV)/.built
	touch $@

build: $(VENV)/.built

debug: $(VENV)/.debug

test: build
	$(SUDO) $(PYTEST) tests

test-fast: build
	$(SUDO) $(PYTEST) tests -m 'not slow' -x

crash: build
	$(SUDO) $(VENV)/bin/python tools/kill9.py --rounds 50

bench: build
	$(SUDO) $(VENV)/bin/python tools/bench/flush.py
	$(SUDO) $(VENV)/bin/python tools/bench/requests.py
	$(SUDO) $(VENV)/bin/python tools/bench/namespace.py
	$(SUDO) $(VENV)/bin/python tools/bench/mount_time.py

lint: build
	$(VENV)/bin/ruff check .
	$(PYTEST) -q tests/t0_layout

docs:
	mandoc -T lint -W warning docs/man/*.[1-8]
	mkdir -p build/docs
	for page in docs/man/*.[1-8]; do mandoc -T html $$page > build/docs/$$(basename $$page).html; done

dist: $(VENV)/.tools
	$(PIP) install -q build
	$(VENV)/bin/python -m build --outdir dist .

quickstart: build
	$(SUDO) $(VENV)/bin/daxfs install-links
	$(SUDO) $(VENV)/bin/daxfs quickstart

unquickstart:
	if [ -x $(VENV)/bin/daxfs ]; then \
		$(SUDO) $(VENV)/bin/daxfs quickstart --undo; $(SUDO) $(VENV)/bin/daxfs install-links --remove; fi

clean:
	rm -rf build dist $(VENV)
