"""What a model is fine-tuned to do, and who is told."""

from collections.abc import Callable
from typing import Any, Literal

Task = Literal["classification", "causal_lm", "regression"]
Progress = Callable[[dict[str, Any]], None]
"""Called with each entry of a training's log, and `steps` in all."""
