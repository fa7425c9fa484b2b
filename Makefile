# One profile (release) and one set of packages (--workspace) for everything that is built here: cargo then compiles RocksDB, which
# takes ten minutes and more, once per machine. Its output is kept outside the checkout, so that a fresh checkout finds it.
export CARGO_TARGET_DIR ?= $(or $(HOME),/root)/.cache/burstfs/target

CARGO       ?= cargo
CARGOFLAGS  := --release --workspace --locked
DESTDIR     ?=
PREFIX      ?= /usr/local
SYSCONFDIR  ?= /etc
RELEASE     := $(CARGO_TARGET_DIR)/release
CLUSTER     := tests/cluster/cluster
DENY_ROOT   := $(or $(HOME),/root)/.cache/burstfs/cargo-deny

.PHONY: help setup build install demo cluster cluster-down test unit e2e kills walltime posix rdma-test rdma-instances sanitize bench-start bench-data bench-metadata bench-net bench-stage lint deny clean

help: ## what there is to make
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install the Debian packages that building and testing need (root)
	@tests/setup

build: ## build everything in release mode
	@tests/own-sources
	$(CARGO) build $(CARGOFLAGS)

install: ## install what was built: PREFIX, SYSCONFDIR, DESTDIR
	slurm-conf/install '$(RELEASE)' '$(DESTDIR)' '$(PREFIX)' '$(SYSCONFDIR)'

demo: setup build ## a real job on a virtual four-node Slurm, from nothing to nothing (root)
	tests/demo/demo

cluster: setup build ## leave such a cluster up to play with (root)
	$(CLUSTER) up
	@tests/demo/welcome

cluster-down: ## take it down again
	$(CLUSTER) down

test: ## set up, build, and run every test, with the time of each part (root)
	@tests/run

unit: ## only the tests that need no cluster
	@tests/run build unit

e2e: ## only the tests on the virtual cluster (root)
	@tests/run setup build e2e

kills: ## kill -9 of burstfsd 200 times, at random moments, under load (root)
	@tests/run setup build kills

walltime: ## a job that is killed at its time limit while it writes faster than can be drained, 20 times (root)
	@tests/run setup build walltime

posix: ## pjdfstest and fsx on the mount of a four-node instance (root)
	@tests/run setup build posix

rdma-test: setup build ## the tests that need an RDMA device, in an emulated machine that has one (root)
	@tests/run rdma

rdma-instances: setup build ## of these only the instances of several nodes (root)
	tests/rdma/run instances

sanitize: setup ## the network layer under the address and the thread sanitizer, here and in that machine (root)
	tests/rdma/sanitize

bench-start: setup build ## times of start and end, stage-in and drain, memory: a table and target/bench/start.json (root)
	BURSTFS_CLUSTER_NVME_MB=6144 tests/benches/run start

bench-data: setup build ## local files through burstfs and without: a table and target/bench/data.json (root)
	tests/benches/run data

bench-metadata: setup build ## names and inodes beside GlusterFS, MooseFS, ext4 and tmpfs: a table and target/bench/metadata.json (root)
	tests/benches/peers install
	tests/benches/run metadata

bench-net: setup build ## calls over RDMA and TCP, against perftest and a bare socket: a table and target/bench/net.json (root)
	tests/rdma/bench-net

bench-stage: setup build ## stage-in and drain beside cp, rsync and a parallel cp: a table and target/bench/stage.json (root)
	BURSTFS_CLUSTER_NVME_MB=12288 tests/benches/run stage

lint: ## formatting, clippy, licences and sources of the dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(CARGOFLAGS) --all-targets -- -D warnings
	@PATH='$(DENY_ROOT)/bin':"$$PATH"; if command -v cargo-deny >/dev/null; then $(CARGO) deny --locked check licenses bans sources; \
	  else echo "lint: cargo-deny is not installed, licences and sources were not checked (make deny installs it and checks)"; fi

deny: ## install cargo-deny in the cache, and check licences, bans and sources
	@PATH='$(DENY_ROOT)/bin':"$$PATH"; command -v cargo-deny >/dev/null || \
	  CARGO_TARGET_DIR='$(DENY_ROOT)/target' $(CARGO) install cargo-deny --locked --root '$(DENY_ROOT)'
	@PATH='$(DENY_ROOT)/bin':"$$PATH"; $(CARGO) deny --locked check licenses bans sources

clean: ## remove what was built from this workspace; RocksDB and other dependencies stay compiled
	$(CARGO) clean --release $(foreach name,$(shell sed -n 's/^name = "\(.*\)"/\1/p' */Cargo.toml */*/Cargo.toml),-p $(name))
	rm -rf target
