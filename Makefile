# The two commands of a fresh machine are `make run` and `make test`; both make .venv and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= a red circle moving left on a navy background
CPP := $(shell find csrc tests/cpp -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc python export -type f -not -name '*.pyc')
CTEST_PRESETS := asan tsan

.PHONY: run test lint test-cpp test-python coverage bench gpu-check format clean

run: $(VENV)/.run
	$(BIN)/sora-bench run "$(PROMPT)" --seed 7 --out out/clip.mp4 --json out/receipt.json

test: lint test-cpp test-python

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

# AddressSanitizer with UndefinedBehaviorSanitizer, then ThreadSanitizer.
test-cpp: $(VENV)/.test
	set -e; export PATH="$(CURDIR)/$(BIN):$$PATH"; for preset in $(CTEST_PRESETS); do \
	  cmake --preset $$preset > build/$$preset.log 2>&1 || { cat build/$$preset.log; exit 1; }; \
	  cmake --build --preset $$preset; \
	  ./build/$$preset/tests/cpp/sora_tests; \
	done

# A worker that dies ends the run: xdist's replacement for it would wait for tests that never come.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0 --durations 40

test-python: $(VENV)/.test
	$(PYTEST)

# The same tests, half as long again: the exports run much Python, and every line of it is traced.
coverage: $(VENV)/.test
	$(PYTEST) --cov --cov-report=term

# Measures what the README states and writes it there; wants a quiet machine.
bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.run_all

# On a machine with an NVIDIA GPU: the kernels bit by bit, engines of wan-pocket in every precision, one report.
gpu-check: $(VENV)/.test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[gpu,export]"
	$(BIN)/sora-bench doctor --out out/gpu-check

format: $(VENV)/.test
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .
	$(BIN)/clang-format -i $(CPP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The base install: no torch, no diffusers. Where the tests are installed, their editable one serves.
$(VENV)/.run: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check \
	  $$(test -e $(VENV)/.test && echo '--editable .[test,export]' || echo .)
	@mkdir -p out && touch $@

# Editable, with what the tests and the export need; and a browser, in which the page of `sora-bench explore` is tested.
$(VENV)/.test: pyproject.toml CMakeLists.txt $(shell find csrc -type f) | $(BIN)/python
	@command -v chromium chromium-browser google-chrome > /dev/null \
	  || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get -qq update \
	       && apt-get -qq install --yes --no-install-recommends chromium > /dev/null; } \
	  || echo "no Chromium: the tests of the page of sora-bench explore are left out"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test,export]"
	$(BIN)/python -m compileall -q python export  # a start reads what is compiled, even where Python may not write it
	@mkdir -p build out && touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build out
