# Doppel. `make quickstart` and `make test` work on a bare Debian 12 with Swift: what is missing is
# installed with apt, after saying what and why.

PREFIX  ?= /usr/local
DESTDIR ?=
# mount(8) looks for its helpers in /sbin alone, wherever the program itself lives.
ifneq ($(filter /usr /usr/local,$(PREFIX)),)
SBINDIR ?= /usr/sbin
else
SBINDIR ?= $(PREFIX)/sbin
endif

BINARY := .build/release/doppel
DOCS   := docs/.out

.DEFAULT_GOAL := build
.PHONY: quickstart test build soak bench format docs install

# The guided tour: a real disk image, a pool, a mount, a crash, a restore.
quickstart:
	.ci/scripts/ensure-packages build run quickstart
	swift build -c release --product doppel --static-swift-stdlib
	DOPPEL=$(BINARY) examples/quickstart.sh

test:
	.ci/scripts/ensure-packages build run test
	.ci/scripts/run-tests

build:
	.ci/scripts/ensure-packages build
	swift build -c release --product doppel --static-swift-stdlib

# The same tests with long counts; DOPPEL_SOAK multiplies steps and seeds (docs/testing.md).
soak:
	.ci/scripts/ensure-packages build run test
	DOPPEL_SOAK=$(or $(DOPPEL_SOAK),50) .ci/scripts/run-tests

bench: build
	.ci/scripts/ensure-packages run bench
	DOPPEL=$(BINARY) Benchmarks/bench.py $(BENCH)

format:
	swift format --in-place --recursive Sources Tests Package.swift

# Man pages and shell completions, from the same source as --help.
docs: build
	mkdir -p $(DOCS)/man $(DOCS)/completions
	swift package --allow-writing-to-directory $(DOCS)/man \
	    generate-manual --multi-page --output-directory $(DOCS)/man
	$(BINARY) --generate-completion-script bash > $(DOCS)/completions/doppel.bash
	$(BINARY) --generate-completion-script zsh > $(DOCS)/completions/_doppel
	$(BINARY) --generate-completion-script fish > $(DOCS)/completions/doppel.fish

# Builds nothing, so that `make build` runs as a user and only this as root.
install:
	@test -x $(BINARY) || { echo "No $(BINARY): run make build first." >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SBINDIR)
	install -m 0755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/doppel
	ln -sf $(PREFIX)/bin/doppel $(DESTDIR)$(SBINDIR)/mount.fuse.doppel
	ln -sf $(PREFIX)/bin/doppel $(DESTDIR)$(SBINDIR)/mount.doppel
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
	    $(DESTDIR)$(PREFIX)/share/zsh/site-functions \
	    $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(BINARY) --generate-completion-script bash \
	    > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/doppel
	$(BINARY) --generate-completion-script zsh \
	    > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_doppel
	$(BINARY) --generate-completion-script fish \
	    > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/doppel.fish
	@if ls $(DOCS)/man/*.1 >/dev/null 2>&1; then \
	    install -d $(DESTDIR)$(PREFIX)/share/man/man1; \
	    install -m 0644 $(DOCS)/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/; \
	else echo "No man pages: make docs makes them."; fi
