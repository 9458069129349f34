# Everything a contributor needs; each target sets up .venv from requirements-dev.lock first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DIST ?= dist
PAGE := docs/examples/dashboard/dashboard.js docs/examples/coordinator.ts $(wildcard tests/dashboard/*.ts)
DENO := DENO_NO_UPDATE_CHECK=1 $(CURDIR)/$(BIN)/deno

.PHONY: demo test test-wheel outside chaos lint bench looks dist lock clean

demo: $(READY)
	$(BIN)/python demo/demo.py

# Each worker takes whole files, so that what a file starts is started once; whoever is done first takes over others'.
# Three, for two cores: a test often waits for a server, a signal or a deadline.
# A real cron waits for a full minute: `make outside` runs it.
test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist worksteal -m 'not real_cron and not registry and not browser' $(PYTEST_ARGS)

# Through Debian's cron, Exim, PgBouncer, Chromium and a package registry, as root: what is not in the lock.
# Each skipped test prints what it needs.
outside: $(READY)
	$(BIN)/python -m pytest -m 'real_cron or real_mail_server or real_pgbouncer or registry or browser' $(PYTEST_ARGS)

# More than 500 nights in which something is killed, late or cut off; CHAOS_ARGS="--seed 1234" repeats one of them.
chaos: $(READY)
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)
	$(BIN)/python -m tests.chaos.slips $(SLIPS_ARGS)
	CERTJOB_RANDOM_EXAMPLES=1 $(BIN)/python -m pytest -q tests/domain

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd supabase/functions/hlf-dynamics-sync && $(DENO) fmt --check --quiet
	cd supabase/functions/hlf-dynamics-sync && $(DENO) lint --quiet
	cd supabase/functions/hlf-dynamics-sync && $(DENO) check --quiet --no-remote --no-npm *.ts tests/*.ts
	$(DENO) fmt --check --quiet --config tests/dashboard/deno.json $(PAGE)
	$(DENO) lint --quiet --config tests/dashboard/deno.json $(PAGE)

# Ratios to a reference run beside it, in turns; BENCH_ARGS="--only night --mentors 100000" narrows it.
bench: $(READY)
	$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

# Every message as pictures in build/looks, with contrasts and sizes. Needs Chromium (Debian: apt-get install chromium).
looks: $(READY)
	$(BIN)/python -m tests.looks $(LOOKS_ARGS)

# What goes to production: one wheel, built by the locked hatchling, and the lock of what it needs; also as constraints,
# which may have neither extras nor hashes, and as a list in CycloneDX's format.
dist: $(READY)
	rm -rf $(DIST)
	$(BIN)/python -m hatchling build --target wheel --directory $(DIST)
	cp requirements.lock $(DIST)/
	$(BIN)/python build_sbom.py requirements.lock > $(DIST)/sbom.cdx.json
	sed -nE 's/^([a-z0-9-]+)(\[[a-z,]+\])?(==[^ ]+) .*/\1\3/p' requirements.lock > $(DIST)/constraints.txt

# The tests with the wheel in dist/, in a copy of the last commit without the package's sources.
test-wheel:
	rm -rf build/wheel && mkdir -p build/wheel
	git archive HEAD | tar -x -C build/wheel
	rm -r build/wheel/certjob build/wheel/sql
	$(PYTHON) -m venv build/wheel/.venv
	build/wheel/.venv/bin/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	build/wheel/.venv/bin/python -m pip install --quiet --no-deps --no-index dist/certjob-*.whl
	cd build/wheel && .venv/bin/python -m pytest -n 3 --dist worksteal -m 'not real_cron and not registry and not browser' \
		--ignore tests/acceptance/test_packaging.py --ignore tests/mail/test_pictures.py $(PYTEST_ARGS)

$(READY): requirements-dev.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and "certjob needs Python 3.11 to 3.14; try make PYTHON=python3.13")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

# Needs pip-tools; the locks name no index, so that any mirror serves, and keep the extras of pyproject.toml.
# requirements.lock is what certjob needs to run; requirements-dev.lock is that and everything to build, test and demo.
COMPILE := pip-compile --quiet --generate-hashes --no-strip-extras --allow-unsafe --no-emit-index-url \
	--no-emit-trusted-host --no-emit-find-links --no-header --no-annotate

lock:
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra embedded --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

clean:
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
