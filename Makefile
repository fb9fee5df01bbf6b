# make demo, make test, make bench: each sets up what it needs in .venv. PYTHON chooses the interpreter (3.10 to 3.13).
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
# What installs Python packages into .venv; .ci/run names uv, which is faster and shares files between environments.
INSTALL ?= $(PY) -m pip install --quiet
# Test processes side by side, each with its share of the processors.
WORKERS ?= 2
PYTEST = $(PY) -m pytest -q --numprocesses $(WORKERS) --dist worksteal
SETUP  := $(VENV)/.setup-demo
TESTED := $(VENV)/.setup-test
LINTED := $(VENV)/.setup-lint
# What a build depends on: when one of these is newer than the stamp, the package is built again.
SOURCES := pyproject.toml Cargo.toml Cargo.lock rust/Cargo.toml $(shell find rust/src cuda_ext -type f \( -name '*.rs' -o -name '*.py' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' \))

# C++ and CUDA sources that clang-format checks, and those that clang-tidy can compile.
CPP_SOURCES  := $(shell find cuda_ext/csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')
TIDY_SOURCES := $(wildcard cuda_ext/csrc/*.cpp cuda_ext/csrc/cpu/*.cpp)

.PHONY: demo test test-property coverage test-real bench lint docs wheel prerequisites clean help

help:
	@echo "make demo       transfer a real model to Finnish and show bits per byte (first run downloads about 300 MB)"
	@echo "make test       all tests that need no network and no GPU, Rust's included"
	@echo "make test-property  the property tests on random examples, from a seed that is printed; SALTLM_SEED=N repeats a run"
	@echo "make coverage   make test, measured: fails below the share of lines and branches in pyproject.toml"
	@echo "make test-real  the tests on real inputs (downloaded once, cached)"
	@echo "make bench      the benchmarks; results are kept in bench/RESULTS.md"
	@echo "make lint       formatters and linters of all three languages"
	@echo "make docs       the documentation site, in build/site"
	@echo "make wheel      dist/saltlm-*.whl"

prerequisites:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.85 or newer (https://rustup.rs), then run make again" >&2; exit 2; }
	@command -v $(CXX) >/dev/null || { echo "$(CXX) is missing: install a C++17 compiler (Debian: apt-get install g++), then run make again" >&2; exit 2; }
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.10 to 3.13, or name one: make PYTHON=python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { echo "$(PYTHON) is not Python 3.10 to 3.13; name one: make PYTHON=python3.11 ..." >&2; exit 2; }

$(VENV)/.created: | prerequisites
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	@echo "installing torch and the build tools (several GB the first time; no GPU is needed)"
	$(INSTALL) "torch>=2.10" "maturin>=1.9,<2" "ninja>=1.11" numpy
	@touch $@

$(SETUP): $(VENV)/.created $(SOURCES)
	@echo "building saltlm"
	$(INSTALL) --no-build-isolation -e ".[demo]"
	@touch $@

$(TESTED): $(SETUP)
	$(INSTALL) --no-build-isolation -e ".[test,demo]"
	@touch $@

$(LINTED): $(TESTED)
	$(INSTALL) --no-build-isolation -e ".[lint]"
	@touch $@

demo: $(SETUP)
	$(PY) -m saltlm_demo

test: $(TESTED)
	cargo test --quiet --workspace --release
	$(PYTEST)

test-property: $(TESTED)
	@seed=$${SALTLM_SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}; echo "SALTLM_SEED=$$seed"; \
	SALTLM_SEED=$$seed $(PYTEST) -m "property and not real" $(OPTIONS)

coverage: $(TESTED)
	$(INSTALL) "coverage>=7.10"
	cargo test --quiet --workspace --release
	rm -rf build/coverage
	$(PY) -m coverage run -m pytest -q
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report --skip-covered --sort=cover

test-real: $(TESTED)
	$(PY) -m pytest -q -m real

bench: $(TESTED)
	$(PY) bench/align.py
	$(PY) bench/rows.py
	$(PY) bench/batch.py

lint: $(LINTED)
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	cargo clippy --quiet --workspace --all-targets --features python -- -D warnings
	$(PY) -m ruff check python tests bench cuda_ext
	$(PY) -m ruff format --check python tests bench cuda_ext
	$(VENV)/bin/lint-imports
	$(PY) -m mypy
	$(PY) -m mypy cuda_ext/*.py
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_SOURCES)
	$(PY) cuda_ext/build_ops.py --compile-commands build/tidy/compile_commands.json
	printf '%s\n' $(abspath $(TIDY_SOURCES)) | xargs -P 2 -n 1 $(VENV)/bin/clang-tidy --quiet -p build/tidy

docs: $(TESTED)
	$(INSTALL) --no-build-isolation -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

wheel: $(SETUP)
	MATURIN_PEP517_ARGS="--compatibility pypi" $(PY) -m pip wheel . --no-build-isolation --no-deps -w dist

clean:
	rm -rf build dist target $(VENV) python/saltlm/lib python/saltlm/_rust*.so
