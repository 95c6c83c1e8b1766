# Fairlead: `make help` lists what there is. Every target sets up what it needs by itself.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Where test/tools/setup.sh puts Envoy. It reads the caller's $ENVOY first, so only what runs after it gets this one.
with_envoy := ENVOY=$(CURDIR)/.cache/envoy/envoy

# nft lives outside an ordinary user's PATH on many systems.
export PATH := $(PATH):/usr/sbin:/sbin

# The race detector needs a C compiler. Without one the tests still run.
race := $(if $(filter 1,$(shell go env CGO_ENABLED)),-race)

# What needs neither a built program nor Envoy.
fast_tests := $(addprefix ./,cmd/... translate/... cache/... server/... test/ads/... test/scenarios/...)
protos := translate/frontendpb/frontend.proto

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/fairlead, one static binary
	@CGO_ENABLED=0 go build -trimpath -o bin/fairlead ./cmd/fairlead

.PHONY: setup
setup: ## Put nft and Envoy in place; demo, test, e2e and bench do it by themselves
	@test/tools/setup.sh

.PHONY: demo
demo: setup build ## Two nodes on this machine, with traffic, changes and Envoy replaced; ten seconds once built
	@$(with_envoy) bin/fairlead demo $(DEMO_FLAGS)

.PHONY: test
test: setup ## Every test but e2e: units, scenarios, kube-proxy's decisions, protocol, packets through real Envoys, a proxyless client
	@[ -n "$(race)" ] || echo 'no C compiler: testing without the race detector'
	go test $(race) $(fast_tests)
	$(with_envoy) go test -count=1 ./test/node/... ./test/arch/...
	$(with_envoy) go -C test/clients test -count=1 ./...
	@$(MAKE) --no-print-directory decisions

.PHONY: decisions
decisions: setup ## Random clusters against kube-proxy's own decisions (DECISIONS_FLAGS='-seed 0 -routes 5000000': others, and more)
	go -C test/parity test -count=1 -timeout=0 -v . $(DECISIONS_FLAGS)

.PHONY: parity
parity: decisions ## That, and every way to a Service with packets beside a real kube-proxy; writes test/parity/MATRIX.md (PARITY_FLAGS='-services 20': a sample)
	go -C test/e2e run ./build -for node
	$(with_envoy) go -C test/parity test -count=1 -timeout=30m -v ./packets -matrix ../MATRIX.md $(PARITY_FLAGS)

.PHONY: clients
clients: setup ## gRPC programs in Go, Python, Java and Node.js that balance without a proxy; needs mvn and npm
	$(with_envoy) go -C test/clients test -count=1 . -clients go,python,java,node

.PHONY: e2e
e2e: setup ## Against a real Kubernetes control plane and CoreDNS, built from their modules on the first run
	go -C test/e2e run ./build
	$(with_envoy) go -C test/e2e test -count=1 -timeout=20m . ./readme

.PHONY: e2e-node
e2e-node: ## On real nodes with kubelets and containerd, from the README's commands and images; as root (E2E_NODE_FLAGS=-short: one node, and 20 of Kubernetes' own tests)
	@test/tools/setup.sh node
	@start=$$SECONDS; go -C test/e2e run ./build -for conformance; go -C test/e2e run ./images -for conformance; echo "programs and images: $$((SECONDS - start)) s"
	@start=$$SECONDS; go -C test/e2e test -count=1 -timeout=60m -v ./realnode/... $(E2E_NODE_FLAGS); echo "tests: $$((SECONDS - start)) s"

.PHONY: networks
networks: ## On real nodes with flannel, kube-router and others, each network in turn, and the oldest Kubernetes; as root, half an hour
	@test/tools/setup.sh node
	go -C test/e2e run ./build -for networks
	go -C test/e2e run ./images
	go -C test/e2e test -count=1 -timeout=2h -v -run TestNetworks ./realnode -networks $(NETWORKS_FLAGS)

.PHONY: conformance
conformance: ## Kubernetes' own tests of sig-network on three real nodes, compared with kube-proxy's results; as root, an hour
	@test/tools/setup.sh node
	go -C test/e2e run ./build -for conformance
	go -C test/e2e run ./images -for conformance
	go -C test/e2e test -count=1 -timeout=3h -v -run TestConformance ./realnode -conformance $(CONFORMANCE_FLAGS)

# How long each fuzz target runs.
FUZZ_TIME ?= 10m

.PHONY: fuzz
fuzz: ## Fuzz whatever reads what others wrote, FUZZ_TIME=10m for each target; what is found stays in testdata/fuzz
	@grep -r --include='*_test.go' -o '^func Fuzz[A-Za-z]*' cache cmd server translate | while IFS=: read -r file target; do \
		go test -run '^$$' -fuzz "^$${target#func }$$" -fuzztime $(FUZZ_TIME) "./$$(dirname "$$file")"; done

.PHONY: bench
bench: setup build ## Data path, change latency and scale, beside their peers in one run
	@$(with_envoy) go run ./test/bench -fairlead bin/fairlead $(BENCH_FLAGS)

.PHONY: check
check: ## Formatting, linters, architecture, tidy modules, generated code
	@test/tools/check.sh

.PHONY: generate
generate: ## Generate the Go code of the .proto files
	@go run -C test/tools ./protogen $(PROTOGEN_FLAGS) -root $(CURDIR) $(protos)

.PHONY: golden
golden: ## Rewrite the expected results of the tests that have files of them; read the diff
	go test ./test/scenarios/... -update

.PHONY: clean
clean: ## Remove what was built and downloaded into the checkout
	rm -rf bin .cache
