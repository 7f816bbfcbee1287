# Targets only; everything they do is a command that can be typed as well.

PYTHON   ?= $(shell command -v python3.11 || command -v python3)
BIN      := .venv/bin
WORKERS  ?= 2
REVISION := $(BIN)/revision
# Stamps of what has been set up: a second call does nothing.
SETUP    := .venv/.setup
NANO     := .venv/.nano
STYLES   := .venv/.styles

.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow check format bench nano-table nano-ours nano-map nano-scaling nano-tokens keep nano-heads clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SETUP) $(NANO) ## .venv with the package, its dependencies and the nano assets

run: $(NANO) ## the paper's claim on a laptop: revision run experiment=nano
	$(REVISION) run experiment=nano

test: $(NANO) ## the tests that take seconds each; WORKERS=8 where there are as many cores
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadfile --durations=20

test-slow: $(NANO) ## the tests that take minutes
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

check: $(SETUP) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(SETUP) ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(NANO) ## speed of the parts, each against a limit; an hour, after `make run`
	failed=0; for script in scripts/bench/*.py; do $(BIN)/python $$script || failed=1; done; exit $$failed

PAIRS := alignment=realign pretrain.input=pairs
BOTH  := run.steps=[embed,align,pretrain,instruct,evaluate] evaluate.models=[pretrain,instruct]
SHORT := experiment=nano_map pretrain.trainer.max_steps=300
# Several sweeps: one that fails does not keep the next from running, and make fails in the end.
SWEEP_ALL = failed=0; sweep() { $(REVISION) run -m "$$@" || failed=1; }

nano-table: $(NANO) ## four alignments and real pairs: stage 1 with three seeds, stage 2 with one, one table
	$(SWEEP_ALL); \
	sweep experiment=nano_table seed=1,2; \
	sweep experiment=nano_table seed=1,2 $(PAIRS); \
	sweep experiment=nano_table seed=0 $(BOTH); \
	sweep experiment=nano_table seed=0 $(BOTH) $(PAIRS); \
	exit $$failed

nano-ours: $(NANO) ## an alignment of our own in the table of nano-table, three seeds
	$(REVISION) run -m experiment=nano_table alignment=shrunk_ot

nano-map: $(NANO) $(STYLES) ## where alignment matters: steps, depth, amount of text, and the gap (which needs npm)
	$(SWEEP_ALL); \
	sweep experiment=nano_map; \
	sweep $(SHORT) model.projector.depth=1,3; \
	sweep $(SHORT) pretrain.limit=1000,3000; \
	sweep experiment=nano_temperature; \
	sweep $(SHORT) encoder=nano_temperature contrast.logit_scale=10.0,30.0; \
	exit $$failed

nano-scaling: $(NANO) ## how many texts are worth one image-caption pair, at equal steps
	$(SWEEP_ALL); \
	sweep experiment=nano_scaling; \
	sweep experiment=nano_scaling pretrain.input=pairs pretrain.limit=500,1200,3000,5000; \
	exit $$failed

nano-tokens: $(NANO) ## how many visual tokens one embedding needs, as copies and as slots
	$(SWEEP_ALL); \
	sweep experiment=nano_tokens; \
	sweep experiment=nano_tokens model.num_visual_tokens=576 model.visual_tokens=repeat; \
	exit $$failed

keep: ## what the jobs of a sweep said, without their models, into docs/results; SWEEP=nano_table
	mkdir -p docs/results
	tar -cJf docs/results/$(SWEEP).tar.xz $(addprefix --exclude=,model checkpoints multirun.yaml provenance.json log.jsonl '*.png' '.*.lock') runs/$(SWEEP)
SWEEP ?= nano_table

nano-heads: $(NANO) $(STYLES) ## train the heads of the nano encoder again
	$(REVISION) run experiment=nano_heads

clean: ## remove what runs and caches left
	rm -rf runs wandb build dist .pytest_cache .mypy_cache .ruff_cache

distclean: clean ## also remove .venv and the records, models and embeddings under data/
	rm -rf .venv data

$(SETUP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

$(NANO): data_recipes/nano-requirements.txt $(SETUP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	touch $@

$(STYLES): $(SETUP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[styles]"
	touch $@
