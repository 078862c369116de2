# Everything a newcomer or CI runs. Each target is complete on a machine with git, make and Python 3.11 or newer.
#     make serve      the main job: an upper-casing TCP and UDP echo server on 127.0.0.1:8080 (ARGS="--tcp :9000": there)
#     make test       the tests; `PYTHON=python3.13 make test` picks another interpreter
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# How many at a time: tests/conftest.py. Who has run out of tests takes some of another's.
PARALLEL := -n auto --dist worksteal

.PHONY: help serve test test-pure test-without-uvloop soak style types coverage docs picture dist wheels bench bench-environment
.PHONY: docs-environment runtime dev clean

help:
	@sed -n '1,4s/^# \{0,1\}//p' Makefile; \
	echo "Further targets: docs, bench, soak, style, types, coverage, dist, wheels, test-pure, test-without-uvloop, clean"

serve: runtime
	@$(BIN)/python -m asyncserver $(ARGS)

test: dev
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# The same tests without the compiled extension, which does what it does in C.
test-pure: dev
	@ASYNCSERVER_PURE=1 $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# The same tests on the standard library's loop alone, in an environment that never saw uvloop.
test-without-uvloop:
	@$(MAKE) --no-print-directory VENV=$(VENV)-without-uvloop dev
	@$(VENV)-without-uvloop/bin/python -m pip uninstall --quiet --yes uvloop
	@$(VENV)-without-uvloop/bin/python -m pytest $(PARALLEL) $(ARGS)

# Faults and floods at full length; SOAK_MINUTES=30 for the mixed load. ARGS="--markdown FILE" keeps the figures.
soak: dev
	@$(BIN)/python -m tests.soak $(ARGS)

style: dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: dev
	@$(BIN)/mypy
	@PATH="$(abspath $(BIN)):$$PATH" pyright --verifytypes asyncserver --ignoreexternal
	@PATH="$(abspath $(BIN)):$$PATH" pyright --verifytypes compat --ignoreexternal

# Of the Python that the extension does the same as.
coverage: dev
	@rm -f .coverage .coverage.*
	@ASYNCSERVER_PURE=1 $(BIN)/coverage run -m pytest $(PARALLEL) $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

# The documentation as a site, in build/site; every warning is an error.
docs: docs-environment
	@$(BIN)/python -m sphinx -W --keep-going -n -q -c docs -d build/doctrees . build/site && echo "build/site/docs/index.html"

# docs/live.svg, anew: what the README shows of the live view.
picture: docs-environment
	@$(BIN)/python docs/live.py

# The sdist and the wheel, in dist/, each tried as one gets it.
dist: dev
	@PYTHON="$(PYTHON)" VENV="$(VENV)" .ci/try-dist

# A wheel with the extension for each Python that is found, in wheels/, each tried in an environment of its own.
PYTHONS ?= python3.11 python3.12 python3.13 python3.14 python3.15
wheels:
	@mkdir -p wheels
	@for python in $(PYTHONS); do \
		$$python -c '' 2>/dev/null || { echo "$$python: not found, left out"; continue; }; \
		ASYNCSERVER_SPEEDUPS=1 PYTHON=$$python VENV= .ci/try-dist || exit 1; \
		mv dist/*.whl wheels; \
	done
	@ls wheels

bench: bench-environment
	@echo "Ready. Three minutes at most: $(BIN)/python -m benchmarks --quick"
	@echo "Everything, as a page with charts: $(BIN)/python -m benchmarks --page FOLDER; all options: --help"

# An environment is made anew when the interpreter or pyproject.toml changed since it was made.
runtime: INSTALL = -e .
dev: INSTALL = -e . --group dev
bench-environment: INSTALL = -e . --group bench
docs-environment: INSTALL = -e '.[metrics]' --group docs
runtime dev bench-environment docs-environment:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("asyncserver needs Python 3.11 or newer; \
	$(PYTHON) is %d.%d. Name another: PYTHON=python3.12 make ..." % v[:2])'
	@want="$$($(PYTHON) -c 'import sys; print(sys.version.split()[0], sys.base_prefix)') $$(cksum < pyproject.toml)"; \
	[ "$$want" = "$$(cat $(VENV)/.made 2>/dev/null)" ] || { \
		echo "making $(VENV) ..."; \
		$(PYTHON) -m venv --clear $(VENV) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip && \
		echo "$$want" > $(VENV)/.made; }
	@[ -e $(VENV)/.made-$@ ] || [ $@ = runtime -a -e $(VENV)/.made-dev ] || { \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check $(INSTALL) && touch $(VENV)/.made-$@; }
	@$(BIN)/python hatch_build.py  # the extension, if it can be had and is not there as its sources are

clean:
	@rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* dist wheels build \
		asyncserver/speedups/*.so
