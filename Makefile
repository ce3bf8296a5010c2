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

# The same tests with long counts; DOPPEL_SOAK multiplies steps and seeds (docs/testing.md). Then those of the wire and of
# sessions once more, under the sanitizers.
soak:
	.ci/scripts/ensure-packages build run test
	swift run -c release -Xswiftc -enable-testing simulator \
	    --seeds $(or $(SEEDS),4000) --steps 2500 --jobs $$(nproc)
	swift run -c release -Xswiftc -enable-testing simulator --world roles \
	    --seeds $(or $(SEEDS),4000) --steps 2500 --jobs $$(nproc)
	DOPPEL_SOAK=$(or $(DOPPEL_SOAK),50) .ci/scripts/run-tests
	.ci/scripts/run-sanitized

bench: build
	.ci/scripts/ensure-packages run bench
	swift build -c release --product volume-bench --static-swift-stdlib
	DOPPEL=$(BINARY) Benchmarks/bench.py $(BENCH)

format:
	swift format --in-place --recursive Sources Tests Package.swift

# Man pages and shell completions, from the same source as --help.
docs: build
	$(call write_docs,$(DOCS)/man,$(DOCS)/man8,$(DOCS)/doppel.bash,$(DOCS)/_doppel,$(DOCS)/doppel.fish)
	@echo "Man pages and completions are in $(DOCS)."

# Where: man1, man8, and the scripts for bash, zsh and fish. The program writes them itself.
define write_docs
	install -d $(1) $(2) $(dir $(3)) $(dir $(4)) $(dir $(5))
	$(BINARY) generate-manual $(1)
	for name in mount.fuse.doppel mount.doppel; do \
	    echo ".so man1/doppel-mount.1" > $(2)/$$name.8; done
	$(BINARY) --generate-completion-script bash > $(3)
	$(BINARY) --generate-completion-script zsh > $(4)
	$(BINARY) --generate-completion-script fish > $(5)
endef

# Builds nothing, so that `make build` runs as a user and only this as root.
SHARE = $(DESTDIR)$(PREFIX)/share
install:
	@test -x $(BINARY) || { echo "No $(BINARY): run make build first." >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SBINDIR)
	install -m 0755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/doppel
	ln -sf $(PREFIX)/bin/doppel $(DESTDIR)$(SBINDIR)/mount.fuse.doppel
	ln -sf $(PREFIX)/bin/doppel $(DESTDIR)$(SBINDIR)/mount.doppel
	$(call write_docs,$(SHARE)/man/man1,$(SHARE)/man/man8,$(SHARE)/bash-completion/completions/doppel,$(SHARE)/zsh/site-functions/_doppel,$(SHARE)/fish/vendor_completions.d/doppel.fish)
