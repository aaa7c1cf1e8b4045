"""A fine-tuning as a document: a model, data, a budget, and the methods to compare on them."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from compress.errors import RecipeError
from compress.finetune.budget import Budget
from compress.finetune.methods import Document, Method, load_method
from compress.finetune.tasks import Task
from compress.recipe import one_word, parse_document
from compress.registry import suggest


class Run(Document):
    """One fine-tuning.

    method         a built-in name (`lora`), or fields of a method, which `name: lora` starts from
    learning_rate  that suits the method, in place of the budget's
    model          in place of the document's
    against        the run that this one is compared with; null: the first
    """

    method: Annotated[Method, BeforeValidator(load_method, json_schema_input_type=str | dict[str, Any])]
    learning_rate: float | None = Field(None, gt=0)
    model: str | None = None
    against: str | None = None


def run_of(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


class Finetuning(Document):
    """What to fine-tune, on what and how. Names of files are relative to the document's own.

    model   `file.py:function` that returns a torch.nn.Module, or the folder of a Hugging Face model
    train   `file.py:function` that returns Samples or (inputs, labels); called with limit=train_samples where that is given
    test    the same; called with limit=test_samples
    merge   after a run on a stored base, the four ways to merge its adapter are compared
    """

    name: str
    model: str
    task: Task = "classification"
    train: str
    test: str | None = None
    train_samples: int | None = Field(None, gt=0)
    test_samples: int | None = Field(None, gt=0)
    budget: Budget
    runs: dict[str, Annotated[Run, BeforeValidator(run_of, json_schema_input_type=Run | str)]] = Field(min_length=1)
    merge: bool = True
    threads: int = Field(2, gt=0)
    limit_seconds: float = Field(86_400, gt=0)
    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    @field_validator("runs")
    @classmethod
    def plain(cls, value: dict[str, Run]) -> dict[str, Run]:
        for name in value:
            one_word(name, "a run's name")
        return value

    @model_validator(mode="after")
    def comparable(self) -> "Finetuning":
        for name, run in self.runs.items():
            if run.against is not None and run.against not in self.runs:
                raise ValueError(f"runs.{name}.against: no run {run.against!r}; {suggest(run.against, self.runs)}")
        return self

    @classmethod
    def load(cls, document: "str | os.PathLike | Finetuning") -> "Finetuning":
        """From a YAML file, or itself. RecipeError names the field that is wrong."""
        if isinstance(document, Finetuning):
            return document
        path = Path(document)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"{str(document)!r} cannot be read: {error.strerror}") from error
        found = parse_document(cls, text, str(document))
        found._folder = path.parent
        return found

    @property
    def folder(self) -> Path:
        """What names of files are relative to."""
        return self._folder

    def references(self, name: str | None = None) -> list[str]:
        """Code and folders that a run, or any run, is made of."""
        models = [run.model or self.model for label, run in self.runs.items() if name in (None, label)]
        return [reference for reference in (*dict.fromkeys(models), self.train, self.test) if reference]

    def baseline(self, name: str) -> str | None:
        """The run that this one is compared with; None for that one itself."""
        found = self.runs[name].against or next(iter(self.runs))
        return None if found == name else found
