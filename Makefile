# Everything from a machine with Python 3.11 or newer, git and make; all of it inside .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where pip looks for PyTorch besides PyPI, for example https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Arms of the demo; `hybridcore compare --help` explains them.
ARMS ?= baseline,hybrid,frozen,random,lr-x10,tuned
# Options of the prediction benchmark, for example --full, or --data DIR for Fashion-MNIST.
PREDICT ?=
# Options of the recipes' benchmark, for example --data DIR, --only nanogpt, --workers 16.
RECIPES ?=
# Minutes of the soak in test-faults; the long one takes 120.
SOAK ?= 4
# The suites train tiny models: more threads per process only get into each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help venv environments demo test test-core test-torch test-jax test-tensorflow test-nowcast test-cupy
.PHONY: test-faults test-parity test-parity-quick lint bench bench-quick bench-recipes bench-predict bench-dynamics clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  make venv TORCH_INDEX=https://download.pytorch.org/whl/cpu   takes the small CPU build of PyTorch"

venv: $(STAMP)  ## create .venv with the project, its tools and PyTorch

$(STAMP): pyproject.toml adapters/torch/pyproject.toml plugins/nowcast/pyproject.toml kernels/cupy/pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and no python3 is on the PATH: install it, or set PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed: %s is %d.%d; set PYTHON=/path/to/python3.11" % (sys.executable, v[0], v[1]))'
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  -e '.[report,tasks,dev]' -e 'adapters/torch[bench]' -e plugins/nowcast -e 'kernels/cupy[test]' torch==2.13.0
	@touch $@

# Libraries that only the tests of the callbacks for other trainers need.
$(VENV)/.hosts: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e 'adapters/torch[bench,transformers,lightning,keras]'
	@touch $@

# One environment per further framework, so that no adapter ever sees another's.
.venv-%/.installed: adapters/%/pyproject.toml pyproject.toml constraints.txt
	"$(PYTHON)" -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tasks,dev]' -e 'adapters/$*[dev]'
	@touch $@

environments: $(VENV)/.hosts .venv-jax/.installed .venv-tensorflow/.installed  ## create all environments, for tests

demo: $(STAMP)  ## compare prediction with its baseline and controls on MNIST
	OMP_NUM_THREADS=1 $(BIN)/hybridcore compare examples/demo.toml --arms $(ARMS)

# The longest suites begin, so that two cores end together.
test: test-jax test-core test-tensorflow test-torch test-parity-quick test-nowcast test-cupy  ## run every test suite

test-core: $(STAMP)  ## run the tests of the core
	$(PYTEST) --doctest-modules hybridcore
	$(PYTEST) tests

test-torch: $(VENV)/.hosts  ## run the tests of the PyTorch adapter
	$(PYTEST) adapters/torch/tests

test-tensorflow: .venv-tensorflow/.installed  ## run the tests of the TensorFlow adapter
	OMP_NUM_THREADS=1 .venv-tensorflow/bin/python -m pytest -q adapters/tensorflow/tests

test-nowcast: $(STAMP)  ## run the tests of the predictor nowcast
	$(PYTEST) --doctest-modules plugins/nowcast/src
	$(PYTEST) plugins/nowcast/tests

test-jax: .venv-jax/.installed  ## run the tests of the JAX adapter
	OMP_NUM_THREADS=1 KERAS_BACKEND=jax .venv-jax/bin/python -m pytest -q --doctest-modules adapters/jax/src
	OMP_NUM_THREADS=1 KERAS_BACKEND=jax .venv-jax/bin/python -m pytest -q adapters/jax/tests

PARITY_VENVS := $(STAMP) .venv-jax/.installed .venv-tensorflow/.installed

test-parity: $(PARITY_VENVS)  ## train one configuration in three frameworks and compare, in both precisions
	$(BIN)/python benchmarks/parity.py
	$(BIN)/python benchmarks/parity.py --float64

test-parity-quick: $(PARITY_VENVS)
	$(BIN)/python benchmarks/parity.py --quick

test-cupy: $(STAMP)  ## run the tests of the CUDA kernels, which need no GPU
	$(PYTEST) kernels/cupy/tests

# Guided by coverage where atheris has a wheel for this machine, random otherwise.
$(VENV)/.fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]' \
	  || echo "atheris cannot be installed here: inputs will be random"
	@touch $@

# The longest part begins, the others run beside it.
FAULTS := fuzz-random kills-tensorflow kills-jax fuzz-guided soak kills-torch kills-numpy tests
.PHONY: $(FAULTS:%=faults-%)
FAULT := OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3

test-faults: $(PARITY_VENVS) $(VENV)/.fuzz  ## kill runs, fill disks, fuzz with a million inputs, soak, under 20 minutes
	@$(MAKE) --no-print-directory -j2 $(FAULTS:%=faults-%)

faults-tests:
	@$(PYTEST) tests/checkpoint/test_kills.py tests/checkpoint/test_full_disk.py tests/checkpoint/test_hostile.py

faults-kills-numpy faults-kills-torch: faults-kills-%:
	@$(FAULT) $(BIN)/python -m benchmarks.kills --kills 200 --framework $*

faults-kills-jax faults-kills-tensorflow: faults-kills-%:
	@$(FAULT) .venv-$*/bin/python -m benchmarks.kills --kills 50 --framework $* --steps 30

faults-fuzz-random:
	@$(FAULT) $(BIN)/python -m benchmarks.fuzz --runs 900000 --engine random --workers 1

faults-fuzz-guided:
	@$(FAULT) $(BIN)/python -m benchmarks.fuzz --runs 100000 --workers 1

faults-soak:
	@$(FAULT) $(BIN)/python -m benchmarks.soak --minutes $(SOAK)

lint: $(STAMP)  ## check style, types and dependency direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## measure the engine's bookkeeping, a quick round
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/overhead.py --quick

bench-quick: $(STAMP)  ## run three published recipes with controls and rivals, a quarter of an hour on two cores
	$(BIN)/python -m benchmarks.recipes --quick --out runs/bench-quick $(RECIPES)

bench-recipes: $(STAMP)  ## run all published recipes, hours on two cores; goes on where it stopped
	$(BIN)/python -m benchmarks.recipes --out runs/bench-recipes $(RECIPES)

bench-predict: $(STAMP)  ## measure what prediction gains against the learning rate, about ten minutes
	$(BIN)/python -m benchmarks.predict $(PREDICT)

bench-dynamics: $(STAMP)  ## measure what the dynamics models know about recorded runs, a quick round
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/dynamics.py --quick

clean:  ## remove the environments, caches and build output, but no runs
	rm -rf $(VENV) .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
