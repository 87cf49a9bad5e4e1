# Two commands do all the set-up: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
BUDGETS ?= short long
OUT ?= runs/digits-$(shell date +%Y%m%d-%H%M%S)
# Tests start with an empty cache, as on a machine that has run nothing yet.
FRESH := CACHE=$$(mktemp -d) && trap 'rm -rf $$CACHE' EXIT && XDG_CACHE_HOME=$$CACHE
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
IMPORTS := cd build/types && ../../$(BIN)/lint-imports --no-cache ../../pyproject.toml
TWICE := --numprocesses 2 --dist worksteal

.PHONY: run test test-slow test-pythons fuzz kill mutate bench lint imports build/types digits rank complexity compare notebooks docs clean

run: .venv/installed
	$(BIN)/pyro-nas search --data digits --out $(OUT)

test: .venv/installed lint
	$(FRESH) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(TWICE)

test-slow: .venv/installed
	$(FRESH) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(TWICE)

test-pythons: .venv/installed
	$(BIN)/python tests/packaging/pythons.py $(if $(PYTHONS),--pythons $(PYTHONS)) $(if $(SUBSET),--tests $(SUBSET))

fuzz: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/properties/fuzz.py

kill: .venv/installed
	$(FRESH) OMP_NUM_THREADS=1 $(BIN)/python tests/studies/kill.py

mutate: .venv/installed
	$(INSTALL) --editable ".[dev,mutate]"
	$(BIN)/python tests/packaging/mutate.py $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) \
		$(if $(WORKERS),--workers $(WORKERS))

bench: .venv/installed
	$(BIN)/python notebooks/benchmarks/steps.py
	$(BIN)/python notebooks/benchmarks/search.py

digits: .venv/installed
	$(BIN)/python notebooks/digits.py

rank: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/rank.py

complexity: .venv/installed
	$(BIN)/python notebooks/complexity.py $(ROOT)

compare: .venv/installed
	for budget in $(BUDGETS); do $(BIN)/python notebooks/compare.py $(ROOT) $$budget || exit 1; done

notebooks: .venv/installed
	$(BIN)/python notebooks/execute.py

lint: .venv/installed build/types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy -p pyro_nas
	$(IMPORTS)

imports: .venv/installed build/types
	$(IMPORTS)

# mypy and import-linter look for pyro_nas.models and pyro_nas.inference where an installed package has them.
build/types: .venv/installed
	rm -rf $@ && mkdir -p $@
	cp -r pyro_nas $@ && cp -r models inference $@/pyro_nas

docs: .venv/installed build/types
	$(INSTALL) --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file notebooks/docs/mkdocs.yml

clean:
	rm -rf .venv build *.egg-info

.venv/installed: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(INSTALL) --editable ".[dev]"
	touch $@
