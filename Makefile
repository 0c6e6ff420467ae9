# One goal, one job. ARGS go to the program behind the goal: make bench ARGS=--quick
PREFIX  ?= /usr
DESTDIR ?=
SECONDS ?= 300
ARGS    ?=

binary   = $(or $(CARGO_TARGET_DIR),target)/release/conward
ctl      = $(dir $(binary))conwardctl
bindir   = $(DESTDIR)$(PREFIX)/bin
libexec  = $(DESTDIR)$(PREFIX)/libexec/conward
sharedir = $(DESTDIR)$(PREFIX)/share

# The version text names it.
export CONWARD_COMMIT := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)

.DEFAULT_GOAL = help
.PHONY: help build run test bench soak fuzz lint install

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# One after the other: built at once, the monitor would get features of its libraries that only conwardctl needs.
build: ## Build the monitor and conwardctl, each one static program
	cargo build --release --locked
	cargo build --release --locked --package conmon-proto

run: ## Show one container's life under conward, from nothing (root)
	tools/setup run
	tools/run

test: ## Check everything that can be checked in 25 minutes (root)
	tools/setup test
	tools/test

bench: ## Compare with Debian's conmon and print a table; ARGS="--quick --realtime"
	tools/setup bench
	cargo build --release --locked
	CONWARD=$(abspath $(binary)) cargo bench --quiet --locked --bench side_by_side -- $(ARGS)

soak: ## Run the loss and stall tests at full size (root, takes long, needs 40 GB)
	tools/setup test
	SOAK=1 cargo test --release --locked --test loss -- $(ARGS)

fuzz: ## Fuzz every parser for SECONDS each; ARGS="--jobs 4 TARGET"
	tools/setup fuzz
	tools/fuzz --seconds $(SECONDS) $(ARGS)

lint: ## Check format, lints, and the licences and sources of dependencies
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	tools/licences

# conmon's callers know a monitor by the name of its program, so this is a file of its own and not a link.
install: ## Install below DESTDIR and PREFIX (default /usr)
	@[ -f $(binary) ] || cargo build --release --locked
	@[ -f $(ctl) ] || cargo build --release --locked --package conmon-proto
	install -D -m 0755 $(binary) $(bindir)/conward
	install -D -m 0755 $(binary) $(libexec)/conmon
	install -D -m 0755 $(ctl) $(bindir)/conwardctl
	install -D -m 0644 docs/man/conward.8 $(sharedir)/man/man8/conward.8
	install -D -m 0644 contrib/systemd/conward@.service $(DESTDIR)$(PREFIX)/lib/systemd/system/conward@.service
	install -D -m 0644 completions/conward.bash $(sharedir)/bash-completion/completions/conward
	install -D -m 0644 completions/conward.fish $(sharedir)/fish/vendor_completions.d/conward.fish
	install -D -m 0644 completions/_conward $(sharedir)/zsh/site-functions/_conward
	install -D -m 0644 docs/man/conwardctl.1 $(sharedir)/man/man1/conwardctl.1
	install -D -m 0644 completions/conwardctl.bash $(sharedir)/bash-completion/completions/conwardctl
	install -D -m 0644 completions/conwardctl.fish $(sharedir)/fish/vendor_completions.d/conwardctl.fish
	install -D -m 0644 completions/_conwardctl $(sharedir)/zsh/site-functions/_conwardctl
