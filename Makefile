# Every target works from a fresh clone; `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help deps build deb test test-node torture fuzz bench demo picture audit clean

# What the build needs, and what a lab node (a User-mode Linux kernel with real file systems and volumes) is made of.
# ca-certificates is for cargo's downloads.
PACKAGES := user-mode-linux xfsprogs lvm2 thin-provisioning-tools e2fsprogs btrfs-progs kmod quota iproute2 strace \
	util-linux systemd prometheus gcc libc6-dev ca-certificates curl python3-venv
CARGO ?= cargo

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

deps: ## install the Debian packages that build and tests need (as root), and check that cargo is there
	@missing=$$(for package in $(PACKAGES); do \
		dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || echo $$package; \
	done); \
	set -e; \
	if [ -n "$$missing" ]; then \
		set -- $$missing; \
		if ! command -v apt-get >/dev/null; then \
			echo "These packages are missing, and there is no apt-get here to install them: $$*" >&2; exit 1; \
		elif [ "$$(id -u)" -ne 0 ]; then \
			echo "Packages are missing. Type:" >&2; \
			echo "  sudo apt-get update && sudo apt-get install --no-install-recommends -y $$*" >&2; exit 1; \
		fi; \
		ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 || apt-get update -q; \
		export DEBIAN_FRONTEND=noninteractive; install="apt-get install -q -y --no-install-recommends"; \
		$$install "$$@" || { apt-get update -q && $$install "$$@"; }; \
	fi
	@command -v $(CARGO) >/dev/null || { \
		echo "cargo is missing. Install Rust $$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer:" \
			"for example with rustup." >&2; exit 1; }

build: deps ## build the daemon and its tools, optimized, into target/release
	$(CARGO) build --release --bins

# The programs of the package; each writes its own man pages and completions.
export PROGRAMS := growd growctl growapi
CARGO_DEB = $(CARGO) deb --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deb

deb: PACKAGES += dpkg-dev
deb: build ## make the Debian package in target/debian, with cargo-deb
	@$(CARGO_DEB)
	rm -rf target/pages
	for program in $(PROGRAMS); do target/release/$$program pages target/pages || exit 1; done
	$(CARGO) deb --no-build

test: PACKAGES += dpkg-dev debootstrap
test: deps ## check format and lints, then run every test, those named lab_* on a lab node (as root, for the booted node)
	@$(CARGO_DEB)
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --all-targets --features otlp -- -D warnings
	$(CARGO) test --no-run
	$(CARGO) test --lib --bins
	tests/venv
	tests/run-all
	$(CARGO) test --features otlp --test lab_tracing

test-node: PACKAGES += dpkg-dev debootstrap
test-node: deps ## of these tests only that of the booted node: install the package on a Debian and check the service there
	@$(CARGO_DEB)
	$(CARGO) build --bins
	tests/node/run

bench: deps ## measure growd against its baselines, on a lab node and here (some minutes); report in target/bench
	$(CARGO) bench

# What tries random cases takes their number and their seed from here. Without a number each test tries as many as in
# `make test`, where some need more than others; without a seed it chooses and prints one.
TRIED = $(if $(ROUNDS),GROWD_ROUNDS=$(ROUNDS)) $(if $(SEED),GROWD_SEED=$(SEED))
# Seconds of the test that goes on for a time.
SOAK ?= 60
torture: deps ## kill, crash, cut the power, damage stores and overload, each ROUNDS times, with SEED the same again
	@for test in lab_kill lab_kill_points power_cut_load lab_crash_points store_damage lab_overload lab_soak; do \
		$(TRIED) GROWD_SOAK_SECONDS=$(SOAK) GROWD_LAB_TIMEOUT=7200 \
			$(CARGO) test --test $$test -- --nocapture || exit 1; \
	done

# Inputs that reach new code are kept in fuzz/corpus, those that fail in fuzz/artifacts. One that failed becomes a seed, so
# that `make test` tries it again.
SECONDS ?= 60
fuzz: deps ## look for inputs that break a parser, SECONDS for each (needs a nightly toolchain and cargo-fuzz)
	@$(CARGO) +nightly --version >/dev/null 2>&1 || { \
		echo "The fuzzer needs a nightly toolchain. Type: rustup toolchain install nightly --profile minimal" >&2; exit 1; }
	@$(CARGO) +nightly fuzz --version >/dev/null 2>&1 || { \
		echo "cargo-fuzz is missing. Type: cargo install --locked cargo-fuzz" >&2; exit 1; }
	@for door in $(notdir $(wildcard fuzz/seeds/*)); do \
		mkdir -p fuzz/corpus/$$door; \
		$(CARGO) +nightly fuzz run --sanitizer none --target-dir target/fuzz $$door fuzz/corpus/$$door fuzz/seeds/$$door -- \
			-max_total_time=$(SECONDS) -max_len=4096 -timeout=10 -verbosity=0 -print_final_stats=1 || exit 1; \
	done

demo: build ## show the daemon at work on a lab node
	tests/lab/run --lab tests/lab/demo.sh target/release

# A lab node writes only below target.
PICTURE = target/dashboard.svg
picture: build ## draw the dashboard's panels from a growd under load on a lab node (nine minutes) as docs/dashboard.svg
	tests/lab/run --lab tests/lab/picture.sh target/release $(PICTURE) \
		"growd $$(git describe --always --dirty --exclude '*') on a lab node"
	mkdir -p docs
	mv $(PICTURE) docs/

audit: ## check dependencies against deny.toml (needs cargo-deny)
	@$(CARGO) deny --version >/dev/null 2>&1 || { \
		echo "cargo-deny is missing. Type: cargo install --locked cargo-deny" >&2; exit 1; }
	$(CARGO) deny check

clean: ## remove everything that was built
	$(CARGO) clean
