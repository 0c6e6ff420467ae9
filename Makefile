# One goal, one job. ARGS go to the program behind the goal: make bench ARGS=--quick
PREFIX  ?= /usr
DESTDIR ?=
SECONDS ?= 300
ARGS    ?=

binary   = $(or $(CARGO_TARGET_DIR),target)/release/conward
ctl      = $(dir $(binary))conwardctl
notices  = $(dir $(binary))NOTICES

# What the packages are called by; another one only to try an upgrade.
VERSION  = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# What is installed: mode, file, place below PREFIX. The packages are made from this list too.
# conmon's callers know a monitor by the name of its program, so that is a file of its own and not a link.
files = \
	0755:$(binary):bin/conward \
	0755:$(binary):libexec/conward/conmon \
	0755:$(ctl):bin/conwardctl \
	0644:docs/man/conward.8:share/man/man8/conward.8 \
	0644:docs/man/conwardctl.1:share/man/man1/conwardctl.1 \
	0644:completions/conward.bash:share/bash-completion/completions/conward \
	0644:completions/conwardctl.bash:share/bash-completion/completions/conwardctl \
	0644:completions/conward.fish:share/fish/vendor_completions.d/conward.fish \
	0644:completions/conwardctl.fish:share/fish/vendor_completions.d/conwardctl.fish \
	0644:completions/_conward:share/zsh/site-functions/_conward \
	0644:completions/_conwardctl:share/zsh/site-functions/_conwardctl \
	0644:contrib/systemd/conward@.service:lib/systemd/system/conward@.service \
	0644:contrib/systemd/conward-killmode-none.conf:$(docdir)/docs/examples/conward-killmode-none.conf \
	0644:README.md:$(docdir)/README.md \
	0644:CHANGELOG.md:$(docdir)/CHANGELOG.md \
	0644:SPECIFICATION.md:$(docdir)/SPECIFICATION.md \
	$(foreach doc,$(wildcard docs/*.md docs/examples/*),0644:$(doc):$(docdir)/$(doc)) \
	0644:LICENSE:share/licenses/conward/LICENSE \
	0644:$(notices):share/licenses/conward/NOTICES
# The same for conward-cri, which is not in the packages yet. It finds its helpers beside itself.
cri = $(dir $(binary))conward-cri
cri_files = \
	0755:$(cri):bin/conward-cri \
	0755:$(dir $(cri))conward-hold:bin/conward-hold \
	0755:$(dir $(cri))conward-start:bin/conward-start \
	0644:docs/man/conward-cri.8:share/man/man8/conward-cri.8 \
	0644:docs/man/conward-cri.toml.5:share/man/man5/conward-cri.toml.5 \
	0644:contrib/systemd/conward-cri.service:lib/systemd/system/conward-cri.service
# Directories that nobody else has.
docdir = share/doc/conward
own_dirs = libexec/conward $(docdir)/docs/examples $(docdir)/docs $(docdir) share/licenses/conward

# The version text names it.
export CONWARD_COMMIT := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)

# Places of the machine that builds are nobody's business, and would make each build another one.
cargo_home = $(or $(CARGO_HOME),$(HOME)/.cargo)
remap = --config 'target."cfg(all())".rustflags = \
	["--remap-path-prefix=$(cargo_home)=/cargo", "--remap-path-prefix=$(CURDIR)=/conward"]'

.DEFAULT_GOAL = help
.PHONY: help build build-cri run test test-vm bench bench-cri soak fuzz lint install install-cri uninstall deb rpm

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# One after the other: built at once, the monitor would get features of its libraries that only conwardctl needs.
build: ## Build the monitor and conwardctl, each one static program
	cargo build --release --locked $(remap)
	cargo build --release --locked $(remap) --package conmon-proto

# Not static: its libraries derive code with programs of their own, which a static target cannot build.
build-cri: ## Build conward-cri, the CRI server, and its two helpers
	RUSTFLAGS= cargo build --release --locked --package conward-cri

run: ## Show one container's life under conward, and a pod through conward-cri, from nothing (root)
	tools/setup run
	tools/run

test: ## Check everything that can be checked in 25 minutes (root)
	tools/setup test
	tools/test

test-vm: ## Limits and the OOM killer on cgroup v2 in a virtual machine, with 300 containers at once; conward-cri (root)
	tools/setup test
	VM_MANY=$${VM_MANY:-300} cargo test --release --locked --test vm -- $(ARGS)
	RUSTFLAGS= cargo test --locked --package conward-cri --test cgroup2 -- $(ARGS)

bench: ## Compare with Debian's conmon and print a table; ARGS="--quick --realtime"
	tools/setup bench
	cargo build --release --locked
	CONWARD=$(abspath $(binary)) cargo bench --quiet --locked --bench side_by_side -- $(ARGS)

bench-cri: ## Compare conward-cri with Debian's containerd and print a table; ARGS="--pods 10 --rounds 5" (root)
	tools/setup bench-cri
	RELEASE=1 cri/tests/run bench $(ARGS)

soak: ## Run the tests of load, loss and the service at full size (root, takes long, needs 40 GB)
	tools/setup test
	SOAK=1 cargo test --release --locked --no-fail-fast --test loss --test service -- $(ARGS)

fuzz: ## Fuzz every parser for SECONDS each; ARGS="--jobs 4 TARGET"
	tools/setup fuzz
	tools/fuzz --seconds $(SECONDS) $(ARGS)

lint: ## Check format, lints, and the licences and sources of dependencies
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --exclude conward-cri --all-targets -- -D warnings
	RUSTFLAGS= cargo clippy --locked --package conward-cri --all-targets -- -D warnings
	tools/licences

$(notices): Cargo.lock tools/notices
	@mkdir -p $(@D)
	tools/notices >$@.new
	@mv $@.new $@

# By rename: a program that runs keeps the file that it was started from, and nobody finds half a file.
install: $(notices) ## Install below DESTDIR and PREFIX (default /usr)
	@[ -f $(binary) ] && [ -f $(ctl) ] || $(MAKE) build
	@set -e; for entry in $(files); do \
		place="$(DESTDIR)$(PREFIX)/$${entry##*:}"; mode=$${entry%%:*}; file=$${entry#*:}; \
		mkdir -p "$${place%/*}"; \
		install -m "$$mode" "$${file%:*}" "$$place.new"; \
		mv -fT "$$place.new" "$$place"; \
	done
	@echo "installed below $(DESTDIR)$(PREFIX); running monitors stay as they are until: conwardctl upgrade --all"

install-cri: ## Install conward-cri below DESTDIR and PREFIX, with its unit; the monitor is installed by itself
	@[ -f $(cri) ] || $(MAKE) build-cri
	@set -e; for entry in $(cri_files); do \
		place="$(DESTDIR)$(PREFIX)/$${entry##*:}"; mode=$${entry%%:*}; file=$${entry#*:}; \
		mkdir -p "$${place%/*}"; install -m "$$mode" "$${file%:*}" "$$place.new"; mv -fT "$$place.new" "$$place"; \
	done
	@for shell in bash fish zsh; do $(cri) completion $$shell >$(dir $(cri))conward-cri.$$shell; done
	@install -D -m 0644 $(dir $(cri))conward-cri.bash "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/conward-cri"
	@install -D -m 0644 $(dir $(cri))conward-cri.fish "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/conward-cri.fish"
	@install -D -m 0644 $(dir $(cri))conward-cri.zsh "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_conward-cri"
	@echo "installed below $(DESTDIR)$(PREFIX); systemctl enable --now conward-cri"

uninstall: ## Remove what install has installed; running monitors go on
	@set -e; for entry in $(files); do rm -f "$(DESTDIR)$(PREFIX)/$${entry##*:}"; done
	@set -e; for entry in $(cri_files); do rm -f "$(DESTDIR)$(PREFIX)/$${entry##*:}"; done
	@rm -f "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/conward-cri" \
		"$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/conward-cri.fish" \
		"$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_conward-cri"
	@for dir in $(own_dirs); do rmdir "$(DESTDIR)$(PREFIX)/$$dir" 2>/dev/null || true; done

deb: build $(notices) ## Build target/packages/*.deb
	tools/deb $(VERSION)

rpm: build $(notices) ## Build target/packages/*.rpm; ARGS=--source compiles within rpmbuild, --vendored with packed crates
	tools/rpm $(VERSION) $(ARGS)
