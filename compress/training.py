"""What training inside a recipe needs: a budget (a document), data, and what every weight must keep while it learns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.formats import Activations, Format
from compress.samples import Data


class Distillation(BaseModel):
    """The float model teaches: loss = (1 - weight) * task loss + weight * temperature^2 * KL(teacher || student) (Hinton et al. 2015).

    features        glob (or several) over names of layers, as `encoder.layer.*.output`; `*` crosses dots and slashes. What these layers put out is taught too:
                    feature_weight * the mean of their mean squared differences from the teacher's (Romero et al. 2015)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    weight: float = Field(0.5, gt=0, le=1)
    temperature: float = Field(2.0, gt=0)
    features: str | tuple[str, ...] | None = None
    feature_weight: float = Field(1.0, gt=0)


class Budget(BaseModel):
    """How long a step trains: `epochs` over the data, or a number of optimizer `steps`. Adam, with a cosine decay of the learning rate to 0.

    learning_rate  null: the training data's own
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    batch: int = Field(32, gt=0)
    seed: int = 0
    distill: Distillation | None = None

    @model_validator(mode="after")
    def one_length(self) -> "Budget":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("train: give epochs or steps, one of them")
        return self

    def total(self, samples: int) -> int:
        """Optimizer steps for this many samples; a last batch that is not full is left out of each epoch."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * max(1, samples // self.batch)))


Loss = Literal["cross_entropy", "mse"] | Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Training:
    """Data to train on.

    inputs  arrays by input name, or one array, or a tuple in the model's order: samples first
    labels  array [samples, ...]: class indices for cross_entropy, values for mse
    loss    "cross_entropy" of the first output's logits, "mse", or a function (outputs, labels) -> scalar in the model's own framework
    learning_rate  that suits the model, where a budget says none
    """

    inputs: Data
    labels: np.ndarray
    loss: Loss = "cross_entropy"
    learning_rate: float = 1e-3


@dataclass(frozen=True, eq=False)
class Constraint:
    """What one weight keeps while it learns; its canonical layout throughout.

    mask         bool, True where the weight may differ from 0; None where nothing was pruned
    codes        int, the cluster of each value; None where nothing was clustered. Values of one cluster learn together (sum of their gradients)
    per_axis     clusters are numbered within each output channel
    zero         cluster 0 stays exactly 0
    temperature  of differentiable k-means: weights learn one by one and choose their clusters anew, codes are where they start; None where codes stay
    format       what the weight is rounded to in the forward pass (straight-through gradient); None for float
    learned      whether the format's scales learn
    scales       where learned scales start, float32 as Encoded.scales; None: where the format's own fit puts them
    activations  what the inputs of its layer are rounded to
    """

    mask: np.ndarray | None = None
    codes: np.ndarray | None = None
    per_axis: bool = False
    zero: bool = False
    temperature: float | None = None
    format: Format | None = None
    learned: bool = False
    scales: np.ndarray | None = None
    activations: Activations | None = None


Remask = Callable[[float, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""(share of the training, current canonical weights of the pruned tensors) -> their masks."""


@dataclass(frozen=True)
class Course:
    """One step's training as a backend runs it.

    constraints  by tensor name; other parameters (biases, norms, unselected layers) learn freely
    remask       masks that change while the sparsity grows, asked `remask_every` steps until they no longer change; None where masks stay
    teacher      the float network, where the budget distils
    checkpoint   a safetensors file that is written now and then and at the end, renamed into place; training goes on from it where it fits
    progress     called with (step, steps, loss) after every step
    """

    name: str  # of the recipe step, for messages
    constraints: Mapping[str, Constraint]
    budget: Budget
    data: Training
    remask: Remask | None = None
    remask_every: int = 10
    teacher: Any = None
    checkpoint: Path | None = None
    progress: Callable[[int, int, float], None] | None = None
