# make demo   a sample slide and a sample scene, mapped; prints where the results are
# make test   the whole test suite
# make test-faults  faults alone, and 2,000 damaged files; prints figures as JSON lines
# make check  what CI runs besides: formatting, lint, types
#
# Each makes .venv first, from the exact versions in constraints.txt. PYTHON=python3.12 chooses another.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCREEN := xvfb libxcb-icccm4 libxcb-keysyms1 libxcb-cursor0 libegl1 libgl1 libgl1-mesa-dri
STAMP := $(VENV)/installed

.PHONY: demo test test-faults check clean

$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard kernels/scan/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "GigaVim needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@mkdir -p demo
	@test -f demo/slide.svs || $(BIN)/gigavim sample slide demo/slide.svs
	@test -f demo/scene.tif || $(BIN)/gigavim sample scene demo/scene.tif
	$(BIN)/gigavim run demo/slide.svs demo/scene.tif --output demo

# Windows are tested on a screen that nobody sees. Where it is missing and may be installed, it is.
.PHONY: screen
screen:
	@command -v Xvfb >/dev/null || test "$$(uname)" != Linux || test -n "$$DISPLAY" || \
		{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
		apt-get install -y -qq $(SCREEN) >/dev/null; } || \
		echo "The viewer's tests will be skipped; to run them: apt-get install $(SCREEN)"

# One thread each, or the two processes wait for each other's threads.
test: $(STAMP) screen
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" --numprocesses 2 --dist loadfile

test-faults: $(STAMP)
	$(BIN)/python -m pytest -m "faults or long"
	PYTHONPATH=tests $(BIN)/python benchmarks/faults.py

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo dist
