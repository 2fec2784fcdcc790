# make run     the example project on http://127.0.0.1:8000/ (PORT=8001 moves it)
# make run-waiter  beside it: a waiter's terminal without a database, on http://127.0.0.1:8002/;
#              BROKER_URL=redis://localhost/ for both, and `make run-worker` as a third, has their
#              messages go through Celery
# make test    the tests, each matrix on one loop, in WORKERS=2 processes; DJANGO=5.2, 6.0 or 6.1 and
#              PYTHON= choose others than the usual ones
# make test-load   what `make test` leaves out: sweeps, fuzzes and matrices on the other loops
# make test-all    both, as one
# make soak    the storms of pubsub and rpc: kills, restarts, a silent server; then
#              200,000 operations on a bank and 2,000 faults, or until Ctrl-C;
#              ARGS='--seed 7' or ARGS='--minutes 60' change that
# make django-suite        Django's own tests, with DJANGO=, MODE=bridged|plain|stock, PARALLEL=2
#                          LABELS='basic queries' and ARGS='--shuffle 1'
# make django-suite-diff   what of them ends worse than on Django's own backend
# make drf-suite           REST framework's tests, with DJANGO=, MODE= and, for pytest,
#                          LABELS='tests/test_filters.py -k search'
# make pubsub-suite        django-pgpubsub's tests on pgbackend.pubsub, with DJANGO=, MODE=bridged|
#                          plain|stock (by default all three) and, for pytest, LABELS='-k context'
# make app-suite NAME=django-filter   a package's own tests, from its sdist, on Django's backend and
#                          on this one, plain and bridged; see tests/app_suite/README.md
# make ways        how far three calls go through this package, counted; and their CPU against that
#                  of another commit: ARGS='--against main~10', of other calls too:
#                  ARGS='--against main~10 --calls exists create aiterator'
# make bench       the speed of this backend and of its peers, against the targets;
#                  ARGS='--peers pgbackend tortoise --works "1 get" --views'
# make bench-full  the other kinds of work, sweeps and plots; see tests/benchmarks/README.md
# make bench-pubsub   pgbackend.pubsub against django-pgpubsub, procrastinate, pgqueuer and
#                  django-tasks-db; see tests/benchmarks_pubsub/README.md
# make bench-rpc   pgbackend.rpc against plain Celery on the same Redis; see
#                  tests/benchmarks_rpc/README.md
# make docs        the pages, from docs/ to .docs/; a warning is an error
# make clean   remove what the others made, the demo's data included

# A line of Django's, as in 6.1; without it the newest that the Python admits.
DJANGO =
VENV = .venv$(if $(DJANGO),-$(DJANGO))
PYTHON = python3 python3.14 python3.13 python3.12 python3.11 python \
	$(wildcard $(HOME)/.pyenv/versions/3.1[1-9]*/bin/python3)
MINIMUM = $(if $(filter 6.%,$(DJANGO)),3.12,3.11)

comma = ,

LABELS =
ARGS =
MODE = bridged
NAME =
PARALLEL = 2
WORKERS = 2

# Images of containers set it. Each of the many hundred processes that tests start would compile this
# package anew: two fifths of the CPU that it takes to set Django up.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run run-waiter run-worker test test-load test-all soak django-suite django-suite-diff drf-suite pubsub-suite app-suite bench bench-full bench-pubsub bench-rpc docs ways clean

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

run: $(VENV)/installed-demo
	@$(VENV)/bin/python -m proj.serve

run-waiter: $(VENV)/installed-demo
	@$(VENV)/bin/python -m proj.waiter.serve

run-worker: $(VENV)/installed-demo
	@[ -n "$(BROKER_URL)" ] || { echo "Name the broker: make run-worker BROKER_URL=redis://localhost/" >&2; exit 1; }
	@BROKER_URL="$(BROKER_URL)" DJANGO_SETTINGS_MODULE=proj.settings \
		$(VENV)/bin/python -m celery -A pgbackend.rpc.celery worker -Q rpc,rpc.high --loglevel=INFO

test: $(VENV)/installed-dev
	@echo "All tests but those of make test-load: 8 to 9 minutes on two cores."
	@$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not load' $(ARGS)

test-load: $(VENV)/installed-dev
	@echo "Sweeps, fuzzes and the load test on the other loops: 10 to 16 minutes on two cores."
	@$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'load and not soak' $(ARGS)

test-all: $(VENV)/installed-dev
	@echo "All tests but the storms of make soak: 16 to 22 minutes on two cores."
	@$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not soak' $(ARGS)

soak: $(VENV)/installed-dev
	@$(VENV)/bin/python -m tests.pubsub.storms
	@$(VENV)/bin/python -m tests.rpc.storms
	@$(VENV)/bin/python -m pytest -m soak
	@$(VENV)/bin/python -m tests.faults.load --operations 200000 --faults 2000 $(ARGS)

django-suite: $(VENV)/installed-suite
	@$(VENV)/bin/python -m tests.django_suite --mode $(MODE) --parallel $(PARALLEL) $(ARGS) $(LABELS)

django-suite-diff: $(VENV)/installed-suite
	@$(VENV)/bin/python -m tests.django_suite.diff --parallel $(PARALLEL) $(ARGS) $(LABELS)

# In an environment of its own: pytest-django there would take hold of the tests of `make test`.
drf-suite:
	@$(MAKE) --no-print-directory VENV=$(VENV)-drf $(VENV)-drf/installed-drf
	@$(VENV)-drf/bin/python -m tests.drf_suite --mode $(MODE) $(ARGS) $(LABELS)

pubsub-suite:
	@$(MAKE) --no-print-directory VENV=$(VENV)-pubsub $(VENV)-pubsub/installed-pubsub-suite
	@$(VENV)-pubsub/bin/python -m tests.pubsub_suite $(if $(filter file,$(origin MODE)),,--mode $(MODE)) $(ARGS) $(LABELS)

# In an environment for each package: they need different versions of others.
app-suite:
	@[ -n "$(NAME)" ] || { echo "Name a package: make app-suite NAME=django-filter" >&2; exit 1; }
	@$(MAKE) --no-print-directory VENV=$(VENV)-app-$(NAME) $(VENV)-app-$(NAME)/installed-demo
	@$(VENV)-app-$(NAME)/bin/python -m tests.app_suite $(NAME) $(ARGS) $(LABELS)

ways: $(VENV)/installed-dev
	@$(VENV)/bin/python -m tests.ways $(ARGS)

# The versions of all peers are those that Django 6.1 and its Pythons admit.
bench bench-full:
	@$(MAKE) --no-print-directory DJANGO=6.1 VENV=.venv-bench .venv-bench/installed-bench
	@.venv-bench/bin/python -m tests.benchmarks $(if $(filter bench-full,$@),--full) $(ARGS)

bench-pubsub:
	@$(MAKE) --no-print-directory DJANGO=6.1 VENV=.venv-bench-pubsub .venv-bench-pubsub/installed-bench-pubsub
	@.venv-bench-pubsub/bin/python -m tests.benchmarks_pubsub $(ARGS)

bench-rpc: $(VENV)/installed-dev
	@$(VENV)/bin/python -m tests.benchmarks_rpc $(ARGS)

# In an environment of its own: it needs neither a server nor what the tests need.
docs:
	@$(MAKE) --no-print-directory VENV=$(VENV)-docs $(VENV)-docs/installed-docs
	@$(VENV)-docs/bin/python -m sphinx -q -n -W --keep-going docs .docs

# The stamps stand for the extras that pyproject.toml asks for.
$(VENV)/installed-%: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing the packages; this may take a minute."
	@$(VENV)/bin/python -m pip install --editable '.[$*]' $(if $(DJANGO),'django~=$(DJANGO).0') \
		>$(VENV)/install.log 2>&1 || { \
		echo "The packages could not be installed: see $(VENV)/install.log (is there a network?), then run make again." >&2; \
		exit 1; }
	@touch $@

$(VENV)/bin/pip:
	@for python in $(PYTHON); do \
		$$python -c 'import sys; sys.exit(sys.version_info < ($(subst .,$(comma) ,$(MINIMUM))))' \
			2>/dev/null && break; \
		python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "No Python $(MINIMUM) or later among: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3" >&2; \
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
	rm -rf .venv .venv-* .benchmarks .ci-logs .django-suite .docs .pgbouncer .postgres build dist *.egg-info .pytest_cache kitchen/.pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +
