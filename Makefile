# Two commands do everything: `make compare` and `make test`. Each creates .venv with what it needs; a second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
CORE := .venv-core/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install compare compare-full compare-formats digits digits-training deep-compression compare-training finetune test test-slow gpu-check test-core lint docs bench clean
help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: $(INSTALLED) ## create .venv with every framework and the example data (about 3 minutes, 4 GB)
$(INSTALLED): pyproject.toml constraints.txt examples/requirements.txt
	@echo "Installing into .venv; the frameworks are large, expect some minutes the first time."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[all,examples,peers,docs,dev]'
	$(BIN)/python -m pip install --progress-bar on --no-deps -r examples/requirements.txt
	@touch $@

compare: $(INSTALLED) ## compare a real sentiment model, compressed eight ways, on three runtimes; writes report/
	$(BIN)/compresskit compare examples/sentiment/study.yaml --out report

compare-full: $(INSTALLED) ## the same with 5,000 test reviews; writes report-full/
	$(BIN)/compresskit compare examples/sentiment/study-full.yaml --out report-full

compare-formats: $(INSTALLED) ## the same with every built-in recipe, 18 of them; writes report-formats/
	$(BIN)/compresskit compare examples/sentiment/study-formats.yaml --out report-formats

digits: $(INSTALLED) ## the same for a small Keras model; writes digits/
	$(BIN)/compresskit compare examples/digits/study.yaml --out digits

digits-training: $(INSTALLED) ## the recipes that prune, cluster and train, on the small Keras model and its tf_keras copy; writes digits-training/, digits-tf-keras/
	$(BIN)/compresskit compare examples/digits/study-training.yaml --out digits-training
	$(BIN)/compresskit compare examples/digits/study-tf-keras.yaml --out digits-tf-keras

deep-compression: $(INSTALLED) ## Deep Compression step by step on the digits network in Keras 3, tf_keras and PyTorch; writes deep-compression/
	$(BIN)/compresskit compare examples/digits/study-deep-compression.yaml --out deep-compression

compare-training: $(INSTALLED) ## the same on the sentiment model (about an hour); writes report-training/
	$(BIN)/compresskit compare examples/sentiment/study-training.yaml --out report-training

finetune: $(INSTALLED) ## fine-tune the sentiment model by LoRA by hand, LoRA, QLoRA and whole, side by side; writes finetuned/
	$(BIN)/compresskit finetune examples/sentiment/finetune.yaml --out finetuned

test: $(INSTALLED) ## the test suite, in two processes
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(INSTALLED) ## the tests that take longer: real models on the emulated cores, Keras trainings to every file
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

gpu-check: $(INSTALLED) ## on a machine with an NVIDIA GPU: conformance, every GPU arm of two studies and the GPU tests; writes docs/gpu.md, gpu-check/
	$(BIN)/python -m benchmarks.gpu_check --out gpu-check --page docs/gpu.md

$(CORE): pyproject.toml constraints.txt
	test -x .venv-core/bin/python || $(PYTHON) -m venv .venv-core
	.venv-core/bin/python -m pip install --progress-bar on -c constraints.txt -e . pytest hypothesis
	@touch $@

test-core: $(CORE) ## the core's tests where no framework is installed
	.venv-core/bin/python -m pytest tests/core

lint: $(INSTALLED) ## ruff's rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(INSTALLED) ## the documentation site; writes site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(INSTALLED) ## this project against its peers (benchmarks/)
	$(BIN)/python -m benchmarks

clean: ## remove environments and reports
	rm -rf .venv .venv-core site report report-full report-formats report-training digits digits-training digits-tf-keras deep-compression finetuned gpu-check
