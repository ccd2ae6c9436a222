# Sekiwake. `make` lists the targets.

CARGO   ?= cargo
BUILD   := target/release
FUZZ_SECONDS ?= 8
SIMULATE_SEEDS ?= 10000

.DEFAULT_GOAL := help
.PHONY: help setup setup-test build demo up down test unit lint fuzz test-compose check-kubernetes test-kubernetes simulate bench bench-quick clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install the libraries that the build needs (or say which)
	@deploy/packages build

setup-test: ## install what the tests need besides
	@deploy/packages build test

build: setup ## build every binary
	$(CARGO) build --release --locked --workspace

demo: build ## the whole pipeline in network namespaces, with live counts and a verdict (root)
	@deploy/packages demo
	@$(BUILD)/sekiwake-demo

up: ## docker compose up --build, with a check of what it takes; COMPOSE_PROFILES=demo or monitoring adds these
	@deploy/compose prepare
	REVISION=$$(git rev-parse --short HEAD 2>/dev/null || echo unknown) deploy/compose up --build --detach

down: ## docker compose down; volumes stay
	deploy/compose --profile demo --profile monitoring down

test: setup-test lint unit fuzz demo check-kubernetes test-compose ## everything

unit: setup-test ## unit, property, conformance and end-to-end tests
	$(CARGO) build --release --locked --workspace
	@if $(CARGO) nextest --version >/dev/null 2>&1; \
	  then $(CARGO) nextest run --release --locked --workspace; \
	  else $(CARGO) test --release --locked --workspace; fi
	$(CARGO) test --release --locked --workspace --doc --quiet

lint: setup ## format, clippy, documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps --quiet

fuzz: setup ## run each fuzz target for FUZZ_SECONDS (8)
	@tests/fuzz $(FUZZ_SECONDS)

test-compose: setup-test ## build the images and drive the compose project (takes Docker; TEST_SEKIWAKE_SKIP_COMPOSE=1 skips it)
	$(CARGO) test --release --locked --workspace --test compose -- --ignored --nocapture

simulate: setup ## run SIMULATE_SEEDS (10000) seeds of every scenario of the control plane (some ten minutes)
	TEST_SEKIWAKE_SEEDS=$(SIMULATE_SEEDS) $(CARGO) test --release --locked -p sekiwake-group simulation -- --nocapture

check-kubernetes: build ## check the Kubernetes manifests, and the check itself
	@deploy/packages kubernetes
	@tests/kubernetes/check

test-kubernetes: ## end to end in the cluster that KUBECONFIG names, and nothing left of it
	tests/kubernetes/end-to-end

bench: build ## measure loss, cost and latency beside rsyslog and tcpdump (root, some ten minutes)
	@deploy/packages demo bench
	@$(BUILD)/sekiwake-bench

bench-quick: build ## the same, one row of each table
	@deploy/packages demo bench
	@$(BUILD)/sekiwake-bench --quick

clean: ## remove what was built
	$(CARGO) clean
	rm -rf fuzz/target fuzz/corpus fuzz/artifacts
