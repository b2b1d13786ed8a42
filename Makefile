# `make` lists the targets. Everything is built by cargo; this file only names the usual commands.

CARGO ?= cargo
SCRIPTS := .ci/run packaging/setup.sh packaging/demo.sh packaging/cuda-toolchain.sh packaging/deb.sh packaging/check-binaries.sh \
	packaging/debian/preinst packaging/debian/postinst packaging/debian/prerm packaging/debian/postrm systemd/handover \
	tests/appliance/rootfs tests/appliance/machine tests/appliance/run tests/appliance/keep-state \
	tests/appliance/lib.sh $(wildcard tests/appliance/scenarios/*)

.DEFAULT_GOAL := help
.PHONY: help demo test deb appliance lint cuda-toolchain cuda emulate setup clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## build, start a private bus and the service, and turn a photograph into a video
	@packaging/demo.sh

test: setup ## build, and run all tests
	$(CARGO) build --release --locked --workspace
	$(CARGO) test --release --locked --workspace

deb: $(if $(filter 0,$(CUDA)),,cuda-toolchain) ## build the package, target/deb/animd_VERSION_amd64.deb (PROFILE=release: faster; CUDA=0: without the GPU backend)
	packaging/deb.sh

appliance: ## install the package on Debian 12 and 13 under a real systemd, and drive it there; as root
	@if [ "$$ANIMD_SKIP_APPLIANCE" != 1 ]; then packaging/setup.sh appliance; fi
	$(MAKE) deb PROFILE=$(or $(PROFILE),release)
	tests/appliance/run

lint: ## check format, clippy, licences and shell scripts
	@packaging/setup.sh emulate
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --features animd-engine/emulator --all-targets -- -D warnings
	packaging/check-licences.py
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); \
	else echo 'warning: shellcheck is not installed; the shell scripts were not checked'; fi

cuda-toolchain: ## fetch the pinned CUDA compiler into .cuda (280 MB), for machines without one
	@packaging/setup.sh cuda
	packaging/cuda-toolchain.sh

cuda: ## build the engine with the GPU backend; needs nvcc and no GPU
	$(CARGO) build --release --locked --workspace --features animd-engine/cuda --bin animd-engine

emulate: ## run every CUDA kernel, and the GPU backend, on the CPU at small sizes; needs neither a GPU nor CUDA
	@packaging/setup.sh emulate
	$(CARGO) test --release --locked -p animd-kernels --features emulator
	$(CARGO) test --release --locked -p animd-engine --features emulator --lib cuda
	$(CARGO) test --release --locked -p animd-engine --features emulator --test cuda

setup: ## install what is missing on this machine, asking first (YES=1: without asking)
	@packaging/setup.sh

clean: ## remove everything that was built
	$(CARGO) clean
