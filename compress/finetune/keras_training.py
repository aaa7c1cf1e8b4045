"""Fine-tuning of Keras 3 models by `fit`, with the batches, learning rates and evaluations of the PyTorch loop."""

import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import keras
import numpy as np

from compress.backends.keras_objective import ends_in_softmax
from compress.errors import InputError, TrainingError
from compress.finetune.batches import Batches, Samples
from compress.finetune.budget import Budget
from compress.finetune.keras_lora import AdaptedKeras, adapt_keras, feed
from compress.finetune.methods import Method
from compress.finetune.tasks import Progress

EVALUATION_BATCH = 32

Result = tuple[AdaptedKeras, list[dict[str, Any]], np.ndarray | None]


def finetune_keras(
    model: keras.Model, method: Method, data: Samples, budget: Budget, task: str, test: Samples | None, checkpoint: Path | None, progress: Progress | None
) -> Result:
    """(a copy that learned, the log, scores of the test samples). InputError for what Keras' loop cannot do of a budget or task."""
    if checkpoint is not None:
        raise InputError("checkpoint: Keras' loop does not go on from one to the same bits; leave it out")
    check(data, budget, task)
    adapted = adapt_keras(model, method, data, budget.seed)
    check_labels(adapted.model, data, task)
    tuned, loss = adapted.model, loss_of(adapted.model, task)
    accumulated = budget.accumulate if budget.accumulate > 1 else None
    decay = {"weight_decay": budget.weight_decay, "global_clipnorm": budget.clip, "gradient_accumulation_steps": accumulated}
    tuned.compile(keras.optimizers.AdamW(budget.learning_rate, epsilon=1e-8, **decay), loss, jit_compile=False)  # XLA takes longer than small adapters
    steps = Steps(data, budget)
    following = Following(steps, task, test, progress)
    tuned.fit(steps, shuffle=False, verbose=0, callbacks=[following])
    return adapted, following.log, None if test is None else evaluate(tuned, test, task)[1]


def check(data: Samples, budget: Budget, task: str) -> None:
    if task == "causal_lm":
        raise InputError("task: Keras models are fine-tuned for classification and regression, not for causal_lm")
    refused = {
        "precision": (budget.precision != "float32", "a Keras model computes in its layers' own dtype policies"),
        "optimizer": (budget.optimizer != "adamw", "Keras has no optimizer with 8-bit moments"),
        "recompute": (budget.recompute, "Keras recomputes only what a model wraps in keras.remat itself"),
        "compile": (budget.compile, "Keras compiles its steps itself, by tf.function"),
        "bucket": (budget.bucket and data.lengths is not None, "batches of a Keras model have one length: say bucket=False"),
    }
    for name, (asked, reason) in refused.items():
        if asked:
            raise InputError(f"budget.{name}: {reason}")


def check_labels(model: keras.Model, data: Samples, task: str) -> None:
    found = model(feed(data, np.arange(1)), training=False)
    if isinstance(found, list | tuple | dict):
        raise InputError(f"the model has {len(found)} outputs: fine-tuning needs one, so choose it with keras.Model(model.inputs, model.outputs[0])")
    if task == "classification":
        low, high, classes = data.labels.min(), data.labels.max(), found.shape[-1]
        if not np.issubdtype(data.labels.dtype, np.integer) or data.labels.ndim != 1 or low < 0 or high >= classes:
            raise InputError(f"labels {data.labels.dtype} {list(data.labels.shape)} from {low} to {high} are not classes 0 to {classes - 1} of this model")


def loss_of(model: keras.Model, task: str) -> Callable[[Any, Any], Any]:
    """The mean over a batch."""
    if task == "classification":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=not ends_in_softmax(model))
    return lambda labels, found: keras.ops.mean(keras.ops.square(keras.ops.reshape(found, keras.ops.shape(labels)) - keras.ops.cast(labels, found.dtype)))


class Steps(keras.utils.PyDataset):
    """The batches of every step, each in as many parts as the budget accumulates."""

    def __init__(self, data: Samples, budget: Budget):
        super().__init__()
        self.data, self.budget, self.batches, self.total = data, budget, Batches(data, budget), budget.total(len(data))

    def __len__(self) -> int:
        return self.total * self.budget.accumulate

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        step, part = divmod(index, self.budget.accumulate)
        rows = self.batches.parts(step, 0, 1)[part]
        return feed(self.data, rows), self.data.labels[rows]


class Following(keras.callbacks.Callback):
    """Sets the learning rate of every step, writes the log, evaluates and stops."""

    def __init__(self, steps: Steps, task: str, test: Samples | None, progress: Progress | None):
        super().__init__()
        self.steps, self.task, self.test, self.progress, self.log, self.began = steps, task, test, progress, [], 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        step, part = divmod(batch, self.steps.budget.accumulate)
        if part == 0:
            self.model.reset_metrics()  # so that the loss is this step's, not the mean so far
            self.model.optimizer.learning_rate = self.rate(step)
            self.began = perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        budget, (step, part) = self.steps.budget, divmod(batch + 1, self.steps.budget.accumulate)
        if part:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {step} of {self.steps.total}. A smaller learning rate often helps")
        rows = self.steps.batches.rows(step - 1)
        tokens = next(iter(self.steps.data.inputs.values()))[rows].size if self.steps.data.lengths is None else int(self.steps.data.lengths[rows].sum())
        self.say({"step": step, "loss": loss, "rate": self.rate(step - 1), "tokens": tokens, "seconds": perf_counter() - self.began})
        if self.test is not None and (step == self.steps.total or (budget.evaluate_every and step % budget.evaluate_every == 0)):
            self.say({"step": step, **evaluate(self.model, self.test, self.task)[0]})
            self.model.stop_training = budget.enough(self.log)

    def rate(self, step: int) -> float:
        return self.steps.budget.learning_rate * self.steps.budget.factor(step, self.steps.total)

    def say(self, entry: dict[str, Any]) -> None:
        self.log.append(entry)
        if self.progress:
            self.progress(entry | {"steps": self.steps.total})


def evaluate(model: keras.Model, samples: Samples, task: str) -> tuple[dict[str, float], np.ndarray]:
    """(mean loss and score, of each sample 1 where the class is right, or its squared error)."""
    loss, total, scores = loss_of(model, task), 0.0, []
    for start in range(0, len(samples), EVALUATION_BATCH):
        rows = np.arange(start, min(start + EVALUATION_BATCH, len(samples)))
        labels, found = samples.labels[rows], model(feed(samples, rows), training=False)
        total += len(rows) * float(loss(labels, found))
        values = keras.ops.convert_to_numpy(found)
        right = values.argmax(-1) == labels if task == "classification" else np.square(values.reshape(labels.shape) - labels).reshape(len(rows), -1).mean(1)
        scores.append(right.astype(np.float32))
    each = np.concatenate(scores)
    return {"evaluation loss": total / len(samples), "score": float(each.mean())}, each
