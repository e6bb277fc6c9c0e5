# What people and CI do with this repository. `make` lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# Point it at a wheel of your choice, for instance one without CUDA, which saves some 3 GB.
TORCH ?= torch==2.13.0
# Processes of `make test`, one thread of torch each. Each holds models of its own.
TEST_WORKERS ?= 2
# Where `make install-peers` puts other engines for `make bench-peers`, and which of them (all where none is named).
PEERS_DIR ?= .peers
export PEERS_DIR
PEERS ?=
# Runtimes that `make test-contract` holds to the contract; ray-production puts HAProxy in front.
TEST_RUNTIMES ?= ray-small,ray-production

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
.SILENT: $(VENV)/.torch $(VENV)/.demo $(VENV)/.dev protos-check
# As `argosy serve` has it; see process.py.
export GOMP_SPINCOUNT ?= 10000
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help
help: ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

.PHONY: demo
demo: $(VENV)/.demo ## See the whole fleet at work on this machine
	$(BIN)/python examples/demo.py

.PHONY: install
install: $(VENV)/.dev ## Make the environment for development in .venv

.PHONY: test
test: $(VENV)/.dev ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder \
	  --ignore tests/cluster

.PHONY: test-contract
test-contract: $(VENV)/.dev ## Hold fleets on Ray Serve to the contract
	OMP_NUM_THREADS=1 ARGOSY_TEST_RUNTIMES=$(TEST_RUNTIMES) $(BIN)/pytest tests/contract

.PHONY: test-cluster
test-cluster: $(VENV)/.dev ## Hurt, change and redeploy fleets on Ray Serve (10 minutes; not part of check)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/cluster

.PHONY: check
check: lint types protos-check docs-check sdk-check test test-contract ## Do everything that CI does

.PHONY: bench-cluster
bench-cluster: $(VENV)/.dev ## Measure what the layers of a fleet cost, how it scales and how it starts (20 minutes)
	$(BIN)/python bench/layers.py rate 5
	$(BIN)/python bench/layers.py cancel 20
	$(BIN)/python bench/scaling.py
	$(BIN)/python bench/scaling.py cold

.PHONY: bench-adapters
bench-adapters: $(VENV)/.dev ## Load adapters beside streams, 200 of them in 16 slots, and 1,000 random changes (10 minutes)
	$(BIN)/python bench/adapters.py load
	$(BIN)/python bench/adapters.py zipf
	$(BIN)/python bench/adapter_churn.py

.PHONY: install-peers
install-peers: ## Install the engines that bench-peers measures, each into an environment in PEERS_DIR (10 minutes)
	TORCH='$(TORCH)' PYTHON='$(PYTHON)' scripts/install_peers.sh $(PEERS)

.PHONY: bench-peers
bench-peers: $(VENV)/.dev ## Measure Argosy beside them in one run (40 minutes); BENCH='--resume' or other options
	$(BIN)/python bench/peers.py $(BENCH)

.PHONY: soak
soak: $(VENV)/.dev ## 2,000 requests during scale-downs and redeploys, each answer compared (15 minutes)
	$(BIN)/python bench/soak.py 2000

.PHONY: soak-engine
soak-engine: $(VENV)/.dev ## 20 minutes of random work for one engine: nothing is left in use, nothing grows
	$(BIN)/python bench/soak_engine.py 20

.PHONY: lint
lint: $(VENV)/.dev ## Check form, imports between layers, protos, and the Dockerfile
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/hadolint --config .hadolint.yaml deploy/docker/Dockerfile

.PHONY: format
format: $(VENV)/.dev ## Bring code and protos into form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format --write protos

.PHONY: types
types: $(VENV)/.dev ## Check types
	$(BIN)/pyright

.PHONY: protos
protos: $(VENV)/.dev ## Generate the Python stubs from protos/
	scripts/generate_stubs.sh clients/python

.PHONY: protos-check
protos-check: $(VENV)/.dev ## Check that the committed stubs are those of protos/
	fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT
	scripts/generate_stubs.sh "$$fresh"
	diff -r --brief --exclude=__pycache__ "$$fresh/argosy/api" clients/python/argosy/api \
	  || { echo "the stubs are not those of protos/: run 'make protos'" >&2; exit 1; }

.PHONY: docs
docs: $(VENV)/.dev ## Generate docs/errors.md, docs/metrics.md, the dashboards, and what the chart takes from the code
	$(BIN)/python scripts/generate_docs.py
	PYTHONPATH=deploy/grafana $(BIN)/python -m argosy_dashboards
	$(BIN)/python scripts/generate_chart.py

.PHONY: docs-check
docs-check: $(VENV)/.dev ## Check that the generated pages and dashboards are up to date
	$(BIN)/python scripts/generate_docs.py --check
	PYTHONPATH=deploy/grafana $(BIN)/python -m argosy_dashboards --check
	$(BIN)/python scripts/generate_chart.py --check

.PHONY: sdk-check
sdk-check: $(VENV)/.dev ## Check what `pip install argosy` alone gives: light, fast, old dependencies
	$(BIN)/python scripts/check_sdk_only.py

.PHONY: clean
clean: ## Remove the environment and everything else that was made here
	rm -rf $(VENV) .peers .tools .demo demo-server.log .import_linter_cache build dist
	find . -name __pycache__ -o -name .pytest_cache -o -name .ruff_cache -o -name .hypothesis | xargs rm -rf

# Torch first and held in place: whichever build it is, no other requirement may replace it by another one.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	echo "installing $(TORCH)"
	$(PIP) install '$(TORCH)'
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	echo "installing Argosy's servers"
	$(PIP) install --constraint $(VENV)/.torch --editable '.[services,train]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	echo "installing Argosy's servers and development tools"
	$(PIP) install --constraint $(VENV)/.torch --editable '.[dev]'
	touch $(VENV)/.demo $@
