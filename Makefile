# make          bin/ and the ramdisk in build/
# make demo     from a fresh machine to a virtual machine deployed by Slipway
# make test     everything that must hold before a commit lands
# make lab      the long matrix: firmwares, disks, other people's BMCs
# make bench    the figures of docs/performance.md
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := all

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# What goes into a ramdisk or an image has the same bytes at every commit that
# does not change it: those are rebuilt only when they differ.
STABLE := -trimpath -buildvcs=false -ldflags "-s -w -buildid="
GO := source scripts/go-env && CGO_ENABLED=0 go

.PHONY: all bin ramdisk ramdisk-metal image setup demo test test-unit test-race test-lint test-e2e compat lab bench clean

all: setup bin ramdisk

setup:
	@scripts/setup

bin:
	@mkdir -p bin
	@$(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/slipway ./conductor
	@$(GO) build $(STABLE) -o bin/slipway-agent ./agent
	@$(GO) build $(STABLE) -o bin/slipway-guest ./testenv/osimage/guest
	@$(GO) build $(STABLE) -o bin/slipway-lab ./testenv/slipway-lab

ramdisk: bin
	@$(GO) run ./initramfs build --flavor cloud --agent bin/slipway-agent --out build

ramdisk-metal: bin
	@$(GO) run ./initramfs build --flavor metal --agent bin/slipway-agent --out build

# The small Debian that the demo and the tests deploy; cached by its recipe.
image: bin
	@bin/slipway-lab image build --guest bin/slipway-guest quick

demo: setup bin ramdisk image
	@scripts/demo

test: setup test-lint test-unit test-race test-e2e

test-unit:
	@$(GO) test ./...

# The race detector needs a C compiler.
test-race:
	@source scripts/go-env && if command -v gcc >/dev/null; then CGO_ENABLED=1 go test -race -short ./conductor/... ./agent/... ./proto/...; else echo "race detector: skipped, there is no C compiler here"; fi

test-lint:
	@$(GO) vet ./...
	@source scripts/go-env && scripts/lint

test-e2e: bin ramdisk image
	@source scripts/go-env && SLIPWAY_QEMU=1 go test -count=1 -timeout 15m -v -run 'TestDeploy' ./testenv/e2e

# Other people's programs: clients of the API, Ironic over our agent, our conductor over Ironic's agent.
compat: setup
	@source scripts/go-env && scripts/compat

lab: setup bin ramdisk ramdisk-metal image
	@scripts/setup lab
	@bin/slipway-lab image build --guest bin/slipway-guest cloud-init
	@source scripts/go-env && SLIPWAY_QEMU=1 SLIPWAY_LAB=1 go test -count=1 -timeout 80m -p 1 -v ./testenv/... ./initramfs/... ./conductor/boot/... ./conductor/bmc/...
	@$(MAKE) --no-print-directory compat

bench: setup bin ramdisk ramdisk-metal image
	@source scripts/go-env && scripts/bench

clean:
	@rm -rf bin build
