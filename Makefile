# Everything a contributor needs; each target sets up .venv from requirements.lock first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DENO := DENO_NO_UPDATE_CHECK=1 $(CURDIR)/$(BIN)/deno

.PHONY: demo test chaos lint bench lock clean

demo: $(READY)
	$(BIN)/certjob demo

# Each worker takes whole files, so that what a file starts is started once; whoever is done first takes over others'.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# More than 300 nights in which something is killed; CHAOS_ARGS="--seed 1234" repeats one of them.
chaos: $(READY)
	$(BIN)/python -m tests.chaos --jobs 2 $(CHAOS_ARGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd supabase/functions/hlf-dynamics-sync && $(DENO) fmt --check --quiet
	cd supabase/functions/hlf-dynamics-sync && $(DENO) lint --quiet
	cd supabase/functions/hlf-dynamics-sync && $(DENO) check --quiet --no-remote --no-npm *.ts tests/*.ts

# Ratios to a reference run beside it, in turns; BENCH_ARGS="--only night --mentors 100000" narrows it.
bench: $(READY)
	$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "certjob needs Python 3.11 or later; try make PYTHON=python3.13")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

# Needs pip-tools; the lock names no index, so that any mirror serves, and keeps extras: without them older pips
# (23.2, which Python 3.11 ships) look at a newer release for `coverage[toml]` and refuse it for its missing hash.
lock:
	pip-compile --quiet --generate-hashes --no-strip-extras --allow-unsafe --no-emit-index-url --no-emit-trusted-host \
		--no-emit-find-links --no-header --no-annotate --extra embedded --extra dev --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
