# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv, installs pinned requirements and gets memcached
# by itself, and works alone. What was done once is remembered by a stamp in .venv and done again when its sources are newer.

VENV := .venv
BIN := $(VENV)/bin
PINS := tests/requirements.txt
BENCH_PINS := benchmarks/requirements.txt
NATIVE := $(wildcard kvcluster/*/_native.pyx kvcluster/*/*.pxd)
# The first Python that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Few workers: the tests talk to real nodes, which want processors too.
PYTEST := $(BIN)/pytest -n 2
.DEFAULT_GOAL := help
.PHONY: help test lint demo demo-resize bench bench-cache bench-check soak model requirements memcached databases clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: lint memcached databases ## lint, types, import floors, all tests, then those with compiled twins again in pure Python
	$(PYTEST)
	KVCLUSTER_PURE=1 $(PYTEST) $(wildcard tests/protocol tests/placement tests/transport tests/client)

lint: $(VENV)/dev ## ruff, mypy --strict, import floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: $(VENV)/demo memcached ## the main job on 33,000 real cities, beside what people run now
	$(BIN)/kvcluster demo

demo-resize: $(VENV)/demo memcached ## keys moved and hits lost when a node joins: modulo, ketama, slots
	$(BIN)/kvcluster demo resize

bench: $(VENV)/bench memcached ## ratios to every peer in the same run, with the marks; all of it by `python -m benchmarks --full`
	$(BIN)/python -m benchmarks

bench-cache: $(VENV)/bench memcached databases ## reading through the cache: herds, hits, bulk loads, commits, with the marks
	$(BIN)/python -m benchmarks --readthrough

bench-check: $(VENV)/bench ## what became slower than on main; advises, and fails nothing
	-$(BIN)/python -m benchmarks --check main

soak: $(VENV)/dev memcached databases ## hours: 10,000,000 checked reads beside writers, 200 processes killed in mid-commit, 16 threads
	KVCLUSTER_SOAK=1 KVCLUSTER_READS=10000000 KVCLUSTER_CRASHES=200 $(BIN)/pytest --timeout 0 -rP \
	  tests/cache/test_processes.py tests/outbox/test_crashes.py tests/client/test_threads.py tests/aio/test_soak.py

model: $(VENV)/dev memcached ## half an hour: a resize in larger worlds of the state model, and a million reads beside real ones
	$(BIN)/pytest --timeout 0 -m large -n 2 tests/rebalance

requirements: ## write the pinned requirements anew from pyproject.toml
	rm -rf $(VENV)-pins
	$(PYTHON) -m venv $(VENV)-pins
	$(VENV)-pins/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)-pins/bin/python -m pip install --quiet --group dev '.[all]'
	( echo '# Written by `make requirements` from pyproject.toml: every direct and transitive requirement of development.'; \
	  $(VENV)-pins/bin/python -m pip freeze --exclude kvcluster \
	  | sed "s/^\(pylibmc==.*\)/\1 ; sys_platform == 'linux' and platform_machine == 'x86_64'/" ) >$(PINS)
	rm -rf $(VENV)-pins build
	$(PYTHON) -m venv $(VENV)-pins
	$(VENV)-pins/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)-pins/bin/python -m pip install --quiet -c $(PINS) --group bench
	( echo '# Written by `make requirements` from pyproject.toml: the rivals of the benchmarks and what they need, in agreement'; \
	  echo '# with tests/requirements.txt, which is installed beside.'; \
	  $(VENV)-pins/bin/python -m pip freeze \
	  | sed "s/^\(pylibmc==.*\)/\1 ; sys_platform == 'linux' and platform_machine == 'x86_64'/" ) >$(BENCH_PINS)
	rm -rf $(VENV)-pins

clean: ## remove what was built, .venv too
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f kvcluster/*/_native.c kvcluster/*/_native*.so
	find kvcluster tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# $(call system-install,PACKAGE): by the system's package manager, where that needs no password; never a failure by itself.
define system-install
	if [ "$$(id -u)" = 0 ]; then as_root=; else as_root='sudo -n'; fi; \
	if command -v brew >/dev/null; then brew install --quiet $(1); \
	elif ! $$as_root true 2>/dev/null; then echo 'it takes root, or sudo without a password'; \
	elif command -v apt-get >/dev/null; then \
	  $$as_root apt-get update -qq; $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $(1) >/dev/null; \
	elif command -v dnf >/dev/null; then $$as_root dnf install -q -y $(1); fi || true
endef

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo 'kvcluster needs Python 3.11 or newer'; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo 'trying to install python3-venv'; $(call system-install,python3-venv); }
	$(PYTHON) -m venv $(VENV)

# An editable install does not notice a changed .pyx file, so each is a source of the stamp.
$(VENV)/dev: pyproject.toml $(PINS) $(NATIVE) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(PINS) -e .
	@touch $@

# A rival that cannot be installed here must not keep the others from running: the report says which one is missing.
$(VENV)/bench: $(BENCH_PINS) $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(PINS) -r $(BENCH_PINS) || \
	  grep -v '^#' $(BENCH_PINS) | while read -r pin; do \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(PINS) -c $(BENCH_PINS) "$$pin" || echo "without $$pin"; done
	@touch $@

# The demo needs few of the pinned requirements, so they only constrain.
$(VENV)/demo: pyproject.toml $(PINS) $(NATIVE) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(PINS) -e '.[demo]'
	@touch $@

# Real databases where they can be had. Where an init system runs, installing a server would start it, which nobody has asked for:
# there the tests take what is installed, else Docker, else they skip those databases and say so.
databases:
	@missing=; \
	PATH="$$PATH:/usr/sbin" command -v mariadbd >/dev/null || missing="mariadb-server"; \
	ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null || missing="$$missing postgresql"; \
	if [ -n "$$missing" ] && [ ! -d /run/systemd/system ] && command -v apt-get >/dev/null; then \
	  echo "missing: $$missing; trying to install"; $(call system-install,$$missing); fi

# Real nodes where they can be had; the tests and the demo make the same choice.
memcached:
	@command -v memcached >/dev/null || { echo 'memcached is missing: trying to install it'; $(call system-install,memcached); }
	@if command -v memcached >/dev/null; then echo "nodes: $$(memcached -V) from $$(command -v memcached)"; \
	elif docker info >/dev/null 2>&1; then echo 'nodes: memcached in Docker'; \
	else echo 'nodes: embedded (pure Python), because neither memcached nor Docker is here'; fi
