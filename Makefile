# Sekiwake. `make` lists the targets.

CARGO   ?= cargo
BUILD   := target/release
FUZZ_SECONDS ?= 3
SIMULATE_SEEDS ?= 10000

.DEFAULT_GOAL := help
.PHONY: help setup setup-test build manual deb demo up story down test unit lint deny advisories fuzz test-compose test-package check-kubernetes test-kubernetes simulate bench bench-quick chaos clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install the libraries that the build needs, or list them
	@deploy/packages build

setup-test: ## also install what the tests need
	@deploy/packages build test
	@tests/receivers/install

build: setup ## build every binary
	$(CARGO) build --release --locked --workspace

manual: setup ## write manual pages and shell completions to target/manual and target/completions
	$(CARGO) run --release --locked --quiet -p sekiwake-manual -- \
	  --date "$$(git log -1 --format=%cs 2>/dev/null || date +%F)" target

deb: build manual ## build the Debian package target/debian/sekiwake_VERSION_ARCHITECTURE.deb
	@deploy/packages package
	@deploy/deb

demo: build ## run the whole pipeline in network namespaces, with live counts and a verdict (root); CONSOLE=1 shows it on a page until Ctrl-C
	@deploy/packages demo
	@$(BUILD)/sekiwake-demo $(if $(CONSOLE),--console)

up: ## docker compose up --build after checking requirements; COMPOSE_PROFILES=demo or monitoring adds these
	@deploy/compose prepare
	REVISION=$$(git rev-parse --short HEAD 2>/dev/null || echo unknown) deploy/compose up --build --detach
	@echo "open http://$$(deploy/compose port console 9600)"

story: ## let something happen to the demonstration of COMPOSE_PROFILES=demo make up, for the console to show
	@deploy/story

down: ## docker compose down; keeps volumes
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
	$(CARGO) clippy --release --locked -p sekiwake-bus -p sekiwake-all-in-one --no-default-features --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps --quiet

# Apart from lint and test, because installing cargo-deny takes more than three minutes.
deny: ## check licences, duplicates and sources of dependencies (needs cargo-deny, no network)
	$(CARGO) deny --offline check licenses bans sources

advisories: ## check dependencies for advisories (needs cargo-deny and the network)
	$(CARGO) deny check advisories

fuzz: setup ## run each fuzz target for FUZZ_SECONDS (3)
	@tests/fuzz $(FUZZ_SECONDS)

test-compose: setup-test ## build the images and test the compose project (needs Docker; TEST_SEKIWAKE_SKIP_COMPOSE=1 skips it)
	$(CARGO) test --release --locked --workspace --test compose -- --ignored --nocapture

# Apart from test, because installing cargo-deb takes minutes.
test-package: deb ## install, run, upgrade and remove the package in a Debian with systemd (needs Docker)
	@deploy/packages test-package
	@tests/package

simulate: setup ## simulate SIMULATE_SEEDS (10000) seeds of every control plane scenario (hours)
	TEST_SEKIWAKE_SEEDS=$(SIMULATE_SEEDS) $(CARGO) test --release --locked -p sekiwake-group -p sekiwake-lease \
	  simulation -- --nocapture

check-kubernetes: build ## check the Kubernetes manifests
	@deploy/packages kubernetes
	@tests/kubernetes/check

test-kubernetes: ## test end to end in the cluster that KUBECONFIG names, then clean up
	tests/kubernetes/end-to-end

bench: build ## measure loss, cost and latency beside rsyslog and tcpdump (root, about ten minutes)
	@deploy/packages demo bench
	@tests/receivers/install
	@$(BUILD)/sekiwake-bench

bench-quick: build ## the same, one row per table
	@deploy/packages demo bench
	@tests/receivers/install
	@$(BUILD)/sekiwake-bench --quick

chaos: build ## disconnect services from the proxy and fail NATS servers under load, and account for every datagram (root, about 60 minutes)
	@deploy/packages demo chaos
	@tests/receivers/install
	@$(BUILD)/sekiwake-chaos
	$(CARGO) test --release --locked -p sekiwake-forward --test it for_20_seconds -- --ignored --nocapture
	$(CARGO) test --release --locked -p sekiwake-tests --test it site_whose_link_is_cut -- --ignored --nocapture
	$(CARGO) test --release --locked -p sekiwake-tests --test it million_datagrams -- --ignored --nocapture
	$(CARGO) test --release --locked -p sekiwake-tests --test it two_captures -- --ignored --nocapture

clean: ## remove build output
	$(CARGO) clean
	rm -rf fuzz/target fuzz/corpus fuzz/artifacts
