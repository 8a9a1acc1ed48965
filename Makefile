# `make` alone lists the targets. Set-up is part of `run` and `test`: nothing to do first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
# The first Python on PATH that was built with profile-guided optimisation, which makes the gateway
# cheaper; else python3. Those of distributions are built so, but Debian's does not say it.
PYTHON ?= $(shell for python in $$(type -ap python3 python3.13 python3.12 python3.11); do \
  $$python -c '$(OPTIMISED)' 2>/dev/null && echo $$python && exit; done; echo python3)
OPTIMISED = import ensurepip, sys, sysconfig; configured = sysconfig.get_config_var("CONFIG_ARGS"); \
  sys.exit(sys.version_info < (3, 11) or sys.base_prefix != "/usr" and \
  "--enable-optimizations" not in (configured or ""))
ENGINE ?= docker
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1: \2/'

$(BIN)/pip:
	@python=$(PYTHON); $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed (PYTHON=… names another one)"; exit 1; }; \
	$$python -m venv $(VENV) || { echo "python3 -m venv failed: is python3-venv installed?"; exit 1; }

$(VENV)/run-ready: requirements.lock | $(BIN)/pip
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/dev-ready: requirements-dev.lock | $(BIN)/pip
	$(PIP) install --require-hashes -r requirements-dev.lock
	$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@ $(VENV)/run-ready

run: $(VENV)/run-ready ## set up and run the gateway with gateway.toml
	@mkdir -p var && echo $$$$ > var/gateway.pid && exec $(BIN)/sagesched serve --config gateway.toml

stop: ## drain and end a gateway started by `make run` in this folder
	@kill -TERM $$(cat var/gateway.pid 2>/dev/null) 2>/dev/null && rm -f var/gateway.pid || echo "no gateway runs"

# Byte code is kept whatever the environment says: each worker would compile everything anew.
test: $(VENV)/dev-ready ## set up and run the tests
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist worksteal

test-long: $(VENV)/dev-ready ## run the tests with all repetitions, examples and seeds
	@SAGESCHED_LONG_TESTS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist worksteal

check: $(VENV)/dev-ready ## lint, format, types, import rules, shipped settings
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m gateway check --config gateway.toml

# DATA=FILE: conversations (JSON lines, .gz or not) instead of the demo's own.
bench: $(VENV)/run-ready ## the gateway against no gateway, 3 shapes of congestion (15 minutes)
	@$(BIN)/sagesched bench --out var/bench --time-scale 5 --parallel 3 --cold-seeds 1 $(if $(DATA),--data $(DATA))

bench-overhead: $(VENV)/dev-ready ## measure the gateway's own cost (BENCH="--against REV", "--quick", …)
	@$(BIN)/python -m tests.bench.overhead $(BENCH)

bench-predict: $(VENV)/dev-ready ## measure the predictor (BENCH="--data FILE", "--quick", …)
	@$(BIN)/python -m tests.bench.predict $(BENCH)

.venv-mutants/ready: requirements-dev.lock
	@test -x .venv-mutants/bin/pip || $(PYTHON) -m venv .venv-mutants
	.venv-mutants/bin/python -m pip --disable-pip-version-check --quiet install \
	  --require-hashes -r requirements-dev.lock
	.venv-mutants/bin/python -m pip --disable-pip-version-check --quiet install mutmut==3.8.1
	@touch $@

mutants: .venv-mutants/ready ## put faults into the pure rooms, count those the tests notice (an hour)
	@.venv-mutants/bin/python -m tests.bench.mutants $(MUTANTS)

.venv-models/ready: models/requirements-build.lock
	@test -x .venv-models/bin/pip || $(PYTHON) -m venv .venv-models
	.venv-models/bin/python -m pip --disable-pip-version-check --quiet install \
	  --require-hashes -r models/requirements-build.lock
	@touch $@

models: .venv-models/ready ## build the reference encoder and its tokenizer (maintainers)
	ORT_DISABLE_TELEMETRY=1 .venv-models/bin/python models/build_encoder.py
	@echo "next: fine-tune, then train on a file of conversations (see models/MODELCARD.md)"

# Podman and buildah write OCI images unless told, and those know no HEALTHCHECK.
image: ## build the container image (ENGINE=podman or buildah will do, IMAGE_FLAGS=… are added)
	$(ENGINE) build $(if $(filter docker,$(ENGINE)),,--format docker) $(IMAGE_FLAGS) \
	  --tag sagesched-gateway .

lock: ## resolve the locks again, with a cool-down of 8 days (needs uv)
	@before=$$(date -d '8 days ago' +%Y-%m-%d); for name in requirements requirements-dev; do \
	  uv pip compile -q --universal --python-version 3.11 --exclude-newer $$before \
	    --generate-hashes --no-header --no-emit-index-url --no-annotate $$name.in -o $$name.lock; done

clean: ## remove the environment and what runs leave behind
	rm -rf $(VENV) .venv-models .venv-mutants mutants var build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help run stop test test-long check bench bench-overhead bench-predict mutants models image lock clean
