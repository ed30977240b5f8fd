# The menu: `make help`. Every target makes .venv by itself from the pinned requirements; the second time it is quick.
# PYTHON=… chooses the interpreter for a new .venv. ARGS=… is handed to pytest, the demo or the bench.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
# Compiled tests are kept: without that each run would compile some 300 files anew, which takes longer than most of them.
unexport PYTHONDONTWRITEBYTECODE
ARGS ?=

# After the checkout was moved, .venv is made anew.
$(shell scripts/bootstrap check)

.PHONY: help demo test test-fast test-deep tools lint types lowest vectors bench model screenshots docs reference man dist image sbom onefile format clean

help: ## this menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.run ## three servers, one identity in a store, rotated under traffic
	@$(BIN)/goatherd demo $(ARGS)

test: .venv/.dev tools ## every test but the deep ones, against every store
	$(BIN)/python -m pytest -m "not deep" -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: .venv/.dev ## the tests that take no time
	$(BIN)/python -m pytest -m "not slow" --hypothesis-profile=fast -n auto $(ARGS)

test-deep: .venv/.dev tools ## what takes long: exploration at full size, thousands of seeds, chaos
	$(BIN)/python -m pytest -m deep -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

tools: ## servers and linters that the tests run against, into build/tools: OpenBao, moto, SoftHSM2, promtool, hadolint, Chromium, helm's templates
	@for tool in openbao moto softhsm linters promtool chromium release-tools bubblewrap helm-template; do \
	    scripts/install-$$tool || echo "scripts/install-$$tool failed: the tests that need it are skipped, and counted" >&2; \
	done

lint: .venv/.dev ## ruff (rules and format) and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.dev ## mypy --strict over src, and over what the tests are made of
	$(BIN)/mypy

lowest: .venv/.dev ## the help, the demo and tests of each library, with the lowest versions that pyproject.toml allows
	$(BIN)/python scripts/check-lowest $(ARGS)

vectors: .venv/.dev ## GoatDB's own vectors, file by file
	$(BIN)/python -m tests.vectors

bench: .venv/.dev ## what users feel, over the bare limit; ARGS=--help: one part, two runs compared, growth
	$(BIN)/python -m tests.bench $(ARGS)

model: .venv/.dev ## every state of a small cluster in rotation; ARGS=--mutants takes protections away
	$(BIN)/python -m tests.model $(ARGS)

screenshots: .venv/.dev ## pictures of the page for the docs, taken in the browser of the tests
	$(BIN)/python -m tests.browser.screenshots

docs: .venv/.dev .venv/.docs ## docs/ as HTML in build/docs, warnings are errors
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

reference: .venv/.dev ## bring the generated parts of docs/ into step with the code
	$(BIN)/python -m tests.docs.reference

man: .venv/.dev ## man pages and shell completions, into build/share
	@scripts/install-release-tools
	@rm -rf build/share
	$(BIN)/python scripts/build-man build/share

dist: man ## sdist, wheel, man pages and checksums, into dist/; built twice and compared
	$(BIN)/python scripts/build-dist

image: .venv/.dev ## the container image's file system, into build/image, without a container engine
	$(BIN)/python scripts/build-image-folder build/image

sbom: image ## what the image holds, as CycloneDX, and its licences, into build/sbom; checks the licences
	@scripts/install-release-tools
	$(BIN)/python scripts/build-sbom build/sbom

onefile: image ## one executable with its own interpreter and every extra, into build/onefile; takes minutes
	@scripts/install-release-tools
	scripts/build-onefile

format: .venv/.dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and everything built
	rm -rf .venv build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.%: requirements/%.txt pyproject.toml scripts/bootstrap
	@scripts/bootstrap $*
	@touch $@
