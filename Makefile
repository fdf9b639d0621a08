# make serve | test | lint | bench | clean
#
# PYTHON  the interpreter the environment is made from (3.11 or newer)
# VENV    where the environment lives; one for each interpreter if you use several
# ARGS    more arguments for `serve`, `test` (pytest) or `bench`
# WORKERS processes that share the test modules; 0: none but pytest's own, as a debugger wants it

PYTHON = python3
VENV = .venv
ARGS =
WORKERS = 3
RUN = $(VENV)/bin/python
PIP_INSTALL = PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat -e

SOURCES = pyproject.toml gws_gevent/*.py gws_gevent/_compiled/*.p[xy]* gws_gevent/_compiled/*.h

.PHONY: serve test lint bench clean

serve: $(VENV)/.installed
	$(RUN) -m gws_gevent serve $(ARGS)

test: $(VENV)/.built
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/.installed-test
	$(RUN) -m ruff check .
	$(RUN) -m mypy

bench: $(VENV)/.installed-bench
	$(RUN) -m benchmarks.run $(ARGS)

clean:
	rm -rf .venv .venv-* build benchmarks/.build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f gws_gevent/*.c gws_gevent/_compiled/*.c gws_gevent/_compiled/*.so transports/*.c transports/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gws_gevent needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made $(SOURCES)
	@echo "installing gws_gevent into $(VENV): about half a minute"
	@$(PIP_INSTALL) .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.made pyproject.toml
	@echo "installing gws_gevent and its test tools into $(VENV)"
	@$(PIP_INSTALL) ".[test]"
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.made $(SOURCES)
	@echo "installing gws_gevent and the libraries it is compared with into $(VENV)"
	@$(PIP_INSTALL) ".[bench]"
	@touch $@

# The compiled modules, in place, again when one of their sources changed. An installation builds them too; and setuptools does not
# know which modules see a changed .pxd or .h.
$(VENV)/.built: $(VENV)/.installed-test $(SOURCES)
	@if [ -n "$$(find -L $(SOURCES) -newer $(VENV)/.installed-test)" ]; then \
		echo "building the compiled modules"; \
		$(RUN) -W ignore -c "import setuptools; setuptools.setup()" --quiet build_ext --inplace $(if $(filter %.pxd %.h,$?),--force); \
	fi
	@touch $@
