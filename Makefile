# skiff's tasks; CI calls these too. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu
RELEASE := $(TARGET_DIR)/release/skiff
PREFIX ?= /usr/local
IMAGES := $(abspath $(TARGET_DIR))/images
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)

.PHONY: help install uninstall dist docs run test lint bench fuzz build deps images kubectl

help: ## List the tasks
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

build: ## Build the release binary
	cargo build --release --package skiff

install: build ## Install the binary, manual pages and completions below PREFIX (/usr/local)
	$(SUDO) DESTDIR=$(DESTDIR) hack/install.sh install $(abspath $(RELEASE)) $(DESTDIR)$(PREFIX) $(ALIAS)

uninstall: ## Take away what install put there
	$(SUDO) hack/install.sh uninstall $(DESTDIR)$(PREFIX)

dist: build ## Make a Debian package and a tarball in target/package
	hack/package.sh $(RELEASE) target/package

docs: ## Write docs/commands.md, the reference of all commands, and the figures of docs/comparison.md
	cargo run --quiet --package skiff -- reference >docs/commands.md
	hack/figures.py

run: build ## Build, start a cluster and walk through its main job (root or sudo)
	@$(SUDO) hack/tour.sh $(abspath $(RELEASE))

test: deps lint images ## Format, lints, licences, unit, network and end-to-end tests (root)
	SKIFF_TEST_IMAGES=$(IMAGES) hack/test.sh

deps: ## Install what the tests need: kubectl if there is none, Debian packages, cargo-deny
	@hack/test-deps.sh

lint: ## rustfmt, clippy with warnings as errors, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo deny --offline check bans licenses sources

images: ## Make the test images nginx, httpd and busybox from Debian packages
	hack/make-test-images.sh $(IMAGES)

bench: build images ## Print our figures beside the peer's, write them under bench/ (root)
	$(SUDO) hack/bench.sh $(abspath $(RELEASE)) $(IMAGES)

kubectl: build images ## Write docs/kubectl.md: what works, by command and version of kubectl (root)
	@export KUBECONFIG=$$(mktemp -d)/config; skiff="$(SUDO) $(abspath $(RELEASE)) -p table"; trap "$$skiff delete" EXIT; \
	  $$skiff start && $$skiff image load $(IMAGES)/busybox.tar && hack/kubectl-table.sh docs/kubectl.md

fuzz: ## Run each fuzz target for a minute (needs cargo-fuzz)
	hack/fuzz.sh
