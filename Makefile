# Everything runs from .venv, which the first target that needs it makes. `make help` lists the targets.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Folders that a checkout has: the quick ones need only Python, the others start servers and use outside tools.
QUICK_TESTS := $(wildcard tests/unit tests/property tests/golden)
SLOW_TESTS := $(wildcard tests/simulation tests/integration tests/faults tests/security tests/playbooks tests/tui tests/packaging)

.DEFAULT_GOAL := help
.PHONY: help run demo lint check test faults soak matrix bench man dist pythons format clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r target text; do printf '  %-13s %s\n' "$$target" "$$text"; done

run: $(STAMP) ## start a server on 127.0.0.1:8080 with its data in .karma-data (ARGS="--option=value …" adds options)
	$(BIN)/karma --bind=127.0.0.1 --port=8080 --directory=.karma-data $(ARGS)

demo: $(STAMP) ## a fleet, traffic and the dashboard; `make demo ARGS=failover` in another terminal kills the master
	@$(BIN)/python deploy/demo.py $(ARGS)

lint: $(STAMP) ## formatting, lint, types, import layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint ## lint and the quick tests: what to run before every commit
	$(BIN)/pytest $(QUICK_TESTS)

test: lint ## lint and all tests
	$(BIN)/pytest $(QUICK_TESTS) $(SLOW_TESTS)

faults: $(STAMP) ## every gate in full, some hours (ARGS="-k NAME --cycles 1 --seed 7" repeats one seed)
	$(BIN)/pytest tests/faults tests/simulation tests/property/test_model.py --full $(ARGS)

soak: $(STAMP) ## half an hour of mixed load on a master and a follower; nothing may grow (ARGS="--minutes 120")
	PYTHONPATH=tests $(BIN)/python -m faults.soak $(ARGS)

matrix: $(STAMP) ## every fault at every step of every playbook, at most an hour (`make test` takes a sample)
	KARMA_MATRIX_CELLS=all $(BIN)/pytest tests/playbooks/test_matrix.py $(ARGS)

bench: $(STAMP) ## the benchmarks that README quotes (ARGS="--help" shows their options)
	$(BIN)/python bench/run.py $(ARGS)

man: $(STAMP) ## the manual pages and completion files, after a change of an option, a command or an operation
	$(BIN)/python man/generate.py

dist: $(STAMP) ## the release: karma and karmactl as single files, sdist, wheel, checksums (two minutes)
	$(BIN)/python deploy/single/build.py

pythons: $(STAMP) ## environments of the other Pythons on which `make test` runs parts of the suite
	PYTHONPATH=tests $(BIN)/python -m pythons

format: $(STAMP) ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

clean: ## remove .venv and the caches of the tools; data stays
	rm -rf .venv .pythons .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist

# A stamp instead of the folder itself, whose date changes with every file in it.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Karma needs Python 3.11 or later; $(PYTHON) is not. Name a newer one: make PYTHON=python3.12 …" >&2; \
		exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
