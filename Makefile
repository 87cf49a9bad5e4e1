# Two commands do all the set-up: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
BUDGETS ?= short long
OUT ?= runs/digits-$(shell date +%Y%m%d-%H%M%S)

.PHONY: run test test-slow bench lint digits rank complexity compare notebooks clean

run: .venv/installed
	$(BIN)/pyro-nas search --data digits --out $(OUT)

test: .venv/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

bench: .venv/installed
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench_search

digits: .venv/installed
	$(BIN)/python notebooks/digits.py

rank: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/rank.py

complexity: .venv/installed
	$(BIN)/python notebooks/complexity.py $(ROOT)

compare: .venv/installed
	for budget in $(BUDGETS); do $(BIN)/python notebooks/compare.py $(ROOT) $$budget || exit 1; done

notebooks: .venv/installed
	$(BIN)/python -m tests.execute_notebooks

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/types
	$(BIN)/pip install --quiet --no-deps --target build/types .
	$(BIN)/mypy -p pyro_nas

clean:
	rm -rf .venv build *.egg-info

.venv/installed: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
