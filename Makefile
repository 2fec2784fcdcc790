# make run     the example project on http://127.0.0.1:8000/ (PORT=8001 moves it)
# make test    the tests; any Python and Django of yours, beside the usual ones:
#              make test VENV=.venv-61 PYTHON=python3.13 DJANGO='django~=6.1.0'
# make clean   remove what the other two made, the demo's data included

VENV = .venv
PYTHON = python3 python3.14 python3.13 python3.12 python3.11 python
DJANGO =

.PHONY: help run test clean always

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

run: $(VENV)/installed-demo
	@$(VENV)/bin/python -m proj.serve

test: $(VENV)/installed-dev
	@$(VENV)/bin/python -m pytest

# The stamps stand for the extras that pyproject.toml asks for; a Django of one's own may differ
# from the one that is there.
$(VENV)/installed-%: pyproject.toml $(if $(DJANGO),always) | $(VENV)/bin/pip
	@echo "Installing the packages; this may take a minute."
	@$(VENV)/bin/python -m pip install --editable '.[$*]' $(if $(DJANGO),'$(DJANGO)') \
		>$(VENV)/install.log 2>&1 || { \
		echo "The packages could not be installed: see $(VENV)/install.log (is there a network?), then run make again." >&2; \
		exit 1; }
	@touch $@

$(VENV)/bin/pip:
	@for python in $(PYTHON); do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "No Python 3.11 or later among: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	if ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
		echo "$$python has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv), then run make again." >&2; \
		exit 1; \
	fi; \
	$$python -m venv $(VENV)

clean:
	@if [ -e .postgres/data/postmaster.pid ] && kill -0 "$$(head -n 1 .postgres/data/postmaster.pid)" 2>/dev/null; then \
		echo "PostgreSQL is running in .postgres: stop 'make run' first." >&2; \
		exit 1; \
	fi
	@# As root the data may be a link to a folder elsewhere.
	@if [ -L .postgres/data ]; then rm -rf "$$(readlink .postgres/data)"; fi
	rm -rf $(VENV) .postgres build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +
