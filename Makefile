# Everything a contributor runs. `make` alone explains the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.DELETE_ON_ERROR:
.PHONY: help setup check conventions test package dist rehearsal deployment local-aws bench

# The tools of `make setup` come first; SAM validates offline, but wants to know a region.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export SAM_CLI_TELEMETRY := 0
export AWS_DEFAULT_REGION ?= us-east-1

# Functions are built for this machine; samconfig.toml has an environment of this name.
architecture := $(if $(filter aarch64 arm64,$(shell uname -m)),arm64,x86_64)
bootstraps := .aws-sam/build/RegistryFunction/bootstrap .aws-sam/build/FillerFunction/bootstrap
# As the tests have them, not optimised.
functions := cargo build --locked --workspace --bin registry --bin filler
# The program without a library beside it. That of musl would need another toolchain; glibc links statically too, and reads
# resolv.conf and hosts itself.
static := $(shell uname -m | sed s/arm64/aarch64/)-unknown-linux-gnu
# What only `make dist` needs: what is in the image, what starts it there and gives it a network, systemd-analyze, which judges the
# unit; and for its tests the schemas of Kubernetes, Compose.
dist_packages := ca-certificates containernetworking-plugins runc systemd
dist_tools := kubernetes-validate==1.37.0 podman-compose==1.6.0 PyYAML==6.0.4
# One stamp per content of the script: a change of it installs again.
setup_stamp := .venv/setup-$(shell sha256sum infra/setup.sh | cut -c1-16)

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(setup_stamp) ## Install what the targets below need (apt, PyPI, crates.io); does nothing the second time

$(setup_stamp): infra/setup.sh
	@infra/setup.sh
	rm -f .venv/setup-*
	touch $@

check: conventions ## Formatting, lints, dependencies: licences, bans, sources, advisories
	cargo clippy --locked --workspace --all-targets -- -D warnings

conventions: $(setup_stamp) ## The same without the lints
	cargo fmt --all --check
	sam validate --lint
	python infra/template.py check
	if grep -rnE '\basync (fn|move|\{)|\.await\b' src/oci; then echo "src/oci is pure: no async there" >&2; exit 1; fi
	cargo deny --workspace --locked check --hide-inclusion-graph bans licenses sources
	if reason=$$(cargo deny --workspace --locked fetch db 2>&1); then
	  cargo deny --workspace --locked check --hide-inclusion-graph advisories
	else
	  echo "check: ADVISORIES WERE NOT CHECKED, the RustSec database cannot be reached: $$(grep . <<< "$$reason" | tail -n 1)"
	fi

test: ## Everything: unit tests, behaviours, the real programs and clients; a skipped test is a failure
	@infra/test.py setup

package: $(setup_stamp) ## The functions as a deployment uploads them, in .aws-sam: zips, template, checksums, SBOM; and their tests
	rm -f $(bootstraps)
	sam build --config-env $(architecture)
	for bootstrap in $(bootstraps); do
	  [ -x "$$bootstrap" ] || { echo "package: sam build left no $$bootstrap" >&2; exit 1; }
	done
	python infra/package.py $(architecture)
	# The test of budgets computes with what the program says that requests cost.
	cargo build --locked --workspace --bins --profile test
	STOPOVER_CONFIG_ENV=$(architecture) STOPOVER_BOOTSTRAPS=$(CURDIR)/.aws-sam/build cargo test --locked --workspace --test package --test functions
	# One panic costs one request, in what users run too.
	cargo test --locked --release --package stopover --bin stopover panics

dist: $(setup_stamp) ## The program for machines without Rust, in target/dist: archive, container image, Helm chart, checksums, SBOM; and their tests
	infra/setup.sh $(dist_packages)
	uv pip install --quiet --python .venv/bin/python $(dist_tools)
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --package stopover --target $(static)
	python infra/dist.py "$${CARGO_TARGET_DIR:-target}/$(static)/release/stopover"
	python infra/dist_test.py

rehearsal: $(setup_stamp) ## Deploy, upgrade, go back and delete the stack on an emulator of AWS, for each set of parameters; pull through it
	infra/setup.sh nodejs # for the CDK
	python infra/template.py checkov
	python infra/examples.py
	python infra/rehearse.py
	$(functions)
	python infra/local.py "$${CARGO_TARGET_DIR:-target}/debug" --check
	python infra/local.py "$${CARGO_TARGET_DIR:-target}/debug" --watch --check

# Part of continuous integration: the set of parameters that makes the most policies.
deployment: $(setup_stamp) ## The same for one set of parameters, without pulls
	python infra/rehearse.py "by the rules of an organization"

local-aws: $(setup_stamp) ## The deployment on this machine: emulator of AWS, functions, an upstream, and how to pull; Ctrl-C ends it; WATCH=1: with cargo lambda watch
	$(functions)
	python infra/local.py "$${CARGO_TARGET_DIR:-target}/debug" $(if $(WATCH),--watch)

bench: $(setup_stamp) ## Measure Stopover beside docker-registry, nginx, hyper and curl; writes docs/explanation/benchmarks.md
	cargo build --locked --release --package stopover --package bare
	python3 infra/bench/bench.py "$${CARGO_TARGET_DIR:-target}/release/stopover"
	python3 infra/bench/fill.py "$${CARGO_TARGET_DIR:-target}/release/stopover"
	python3 infra/bench/cold.py "$${CARGO_TARGET_DIR:-target}/release/stopover"
