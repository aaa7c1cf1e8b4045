"""What a model is fine-tuned to do."""

from typing import Literal

Task = Literal["classification", "causal_lm", "regression"]
