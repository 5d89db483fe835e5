# make demo: photographs to a LoRA on this machine, no GPU, no download of models.  make test: lint, every test, types.
# make types: the types as Linux, Windows and macOS have them.
# make ui: the web page.  All install what they need into .venv first; a second run starts at once.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo ui test pytest mypy types chromium clean

demo: .venv/installed
	$(BIN)/python -m examples.demo

ui: .venv/installed
	$(BIN)/python -m webui

test: .venv/installed-dev chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) -j 2 pytest mypy

pytest: .venv/installed-dev # in three processes, which wait a third of their time
	$(BIN)/python -m pytest -m "not slow or learning" -n 3 --dist loadfile --no-loadscope-reorder

mypy: .venv/installed-dev
	$(BIN)/mypy

types: .venv/installed-dev
	printf '%s\n' linux win32 darwin | xargs -P 3 -I{} $(BIN)/mypy --platform {} --cache-dir .mypy_cache/{}

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 14) else "Python 3.10 to 3.14 is needed, this is %d.%d: make PYTHON=python3.12" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing requirements.txt (torch is the large one; this takes a minute or more) ..."
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# The page is tested in Debian's browser; where there is none and none can be had, those tests are skipped and say so.
chromium:
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null; } \
		|| echo "no chromium, and it cannot be installed here: the tests in a browser will be skipped"

clean:
	rm -rf .venv demo
