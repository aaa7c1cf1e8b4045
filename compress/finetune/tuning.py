"""One call: a model, a method, data and a budget; out comes a model that learned."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.backends import backend_of
from compress.errors import InputError
from compress.finetune.adapting import Adapted, adapt
from compress.finetune.batches import Samples
from compress.finetune.budget import Budget
from compress.finetune.losses import Objective
from compress.finetune.measuring import Measured, Meter, unmeasured
from compress.finetune.memory import Memory, predict_step
from compress.finetune.methods import Method, Prompt, load_method
from compress.finetune.tasks import Progress, Task
from compress.finetune.training import Trainer

if TYPE_CHECKING:
    from compress.finetune.keras_lora import AdaptedKeras


@dataclass(frozen=True, eq=False)
class Tuned:
    """A model that learned.

    log     of steps and evaluations
    memory  what the steps took, which `predict_step` says beforehand; or why this machine does not tell
    scores  of each test sample: 1 where the class is right, the mean loss of its tokens, or its squared error; None without test data
    """

    adapted: "Adapted | AdaptedKeras"
    log: list[dict[str, Any]]
    scores: np.ndarray | None
    memory: Measured | str
    predicted: Memory | None = None

    @property
    def model(self) -> Any:
        return self.adapted.model


def finetune(
    model: Any,
    method: "str | Method",
    data: Samples,
    budget: Budget,
    task: Task = "classification",
    test: Samples | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    predict: bool = False,
) -> Tuned:
    """A copy of a PyTorch or Keras 3 model, fine-tuned; the model itself stays as it is.

    checkpoint  a safetensors file that is written now and then: the same call goes on from it
    progress    called after every step and evaluation with its entry of the log
    predict     first runs a step without data, to say what memory it will take

    InputError for targets that match nothing, labels out of range, no data; TrainingError for a loss that is no number.
    """
    method = load_method(method)
    if backend_of(model) == "keras":
        from compress.finetune.keras_training import finetune_keras

        learned = finetune_keras(model, method, data, budget, task, test, checkpoint, progress)
        return Tuned(*learned, "memory is not measured where Keras trains")
    if isinstance(method, Prompt) and method.deep and budget.recompute:
        raise InputError("budget.recompute: gradient checkpointing drops the cache that prefix tuning puts its vectors in; leave it out")
    adapted = adapt(model, method, budget.seed)
    predicted = predict_step(adapted, *data.take(longest(data, budget)), Objective(task), budget) if predict else None
    trainer = Trainer(adapted, data, budget, Objective(task), test, checkpoint, progress)
    unknown = unmeasured(trainer.accelerator.device)
    meter = None if unknown else Meter(adapted, trainer.optimizer.optimizer)
    trainer.run()
    took = meter.measured() if meter else unknown
    scores = trainer.evaluate(test)[1] if test is not None and trainer.scores is None else trainer.scores
    return Tuned(adapted, trainer.log, scores, took, predicted)


def longest(data: Samples, budget: Budget) -> np.ndarray:
    """Indices of the samples of the largest batch that is computed at once."""
    size = min(budget.batch, len(data)) // budget.accumulate
    return np.arange(size) if data.lengths is None else np.argsort(data.lengths)[-size:]
