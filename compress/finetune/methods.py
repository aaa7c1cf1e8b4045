"""Methods of fine-tuning as documents: which parameters learn, and what the frozen rest is stored as."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from compress.errors import RecipeError, UnknownName
from compress.formats import Format
from compress.presets import PRESETS
from compress.registry import suggest
from compress.steps.selector import Patterns


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WithBase(Document):
    """base  a format's name (`compresskit formats`): frozen weights of linear layers are stored in it; null: as they are
    also  glob (or several) over names of modules that learn whole beside the adapters: a new classifier head"""

    base: str | None = None
    also: Patterns = ()

    @field_validator("base")
    @classmethod
    def known(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            raise ValueError(f"no format {value!r}: {suggest(value, PRESETS)}see `compresskit formats`")
        return value

    @property
    def format(self) -> Format | None:
        return None if self.base is None else PRESETS[self.base].format


class Full(Document):
    """Every parameter learns."""

    method: Literal["full"] = "full"


class Selective(Document):
    """Only parameters whose names match learn. BitFit (Ben Zaken et al. 2022) is `train: "*.bias"`.

    train  glob (or several) over names of parameters or modules; `norms` and `biases` are those of every layer;
           `last:2` the last two modules of the model's longest ModuleList
    """

    method: Literal["selective"] = "selective"
    train: Patterns
    also: Patterns = ()


class LoRA(WithBase):
    """W x + scale * B A x with B zero at the start (Hu et al. 2021).

    alpha       null: twice the rank
    targets     glob (or several) over names of linear layers; the output head is only taken by its name
    stabilized  scale alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023) in place of alpha / rank
    magnitude   the norms of the rows of W + scale * B A learn on their own (DoRA, Liu et al. 2024)
    b_rate      how many times the learning rate of A that of B is (LoRA+, Hayou et al. 2024)
    start       pissa: A and B hold the largest singular values, the base the rest (Meng et al. 2024);
                loftq: they make up for what storing the base loses (Li et al. 2023)
    """

    method: Literal["lora"] = "lora"
    rank: int = Field(8, gt=0)
    alpha: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Patterns = "*"
    stabilized: bool = False
    magnitude: bool = False
    b_rate: float = Field(1.0, gt=0)
    start: Literal["zero", "pissa", "loftq"] = "zero"

    @model_validator(mode="after")
    def has_what_it_makes_up_for(self) -> "LoRA":
        if self.start == "loftq" and self.base is None:
            raise ValueError("start: loftq makes up for what storing the base loses, so it needs a base, as bnb.nf4.dq")
        return self

    @property
    def scale(self) -> float:
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank**0.5 if self.stabilized else self.rank)


class Bottleneck(WithBase):
    """x + up(gelu(down(x))) after modules that match, `up` zero at the start (Houlsby et al. 2019, Pfeiffer et al. 2021).

    after  glob (or several) over names of modules whose output is adapted
    """

    method: Literal["bottleneck"] = "bottleneck"
    size: int = Field(16, gt=0)
    after: Patterns


class Prompt(WithBase):
    """Learned vectors before the embedded input (Lester et al. 2021).

    deep  before the keys and values of every layer in place of the input (prefix tuning, Li and Liang 2021)
    """

    method: Literal["prompt"] = "prompt"
    tokens: int = Field(16, gt=0)
    deep: bool = False


class IA3(WithBase):
    """Keys, values and inner activations times learned vectors that start at 1 (Liu et al. 2022).

    targets  glob (or several) over names of linear layers whose outputs are scaled; null: what PEFT knows of the architecture
    """

    method: Literal["ia3"] = "ia3"
    targets: Patterns | None = None


Method = Full | Selective | LoRA | Bottleneck | Prompt | IA3
DOCUMENT: TypeAdapter[Method] = TypeAdapter(Annotated[Method, Field(discriminator="method")])

NAMED: dict[str, tuple[Method, str]] = {
    "full": (Full(), "every parameter"),
    "bitfit": (Selective(train="biases"), "biases only"),
    "norms": (Selective(train="norms"), "normalization layers only"),
    "last1": (Selective(train="last:1"), "the last block only"),
    "lora": (LoRA(), "low-rank matrices beside every linear layer"),
    "rslora": (LoRA(stabilized=True), "LoRA scaled by alpha / sqrt(rank)"),
    "dora": (LoRA(magnitude=True), "LoRA, and norms of rows"),
    "lora+": (LoRA(b_rate=16), "LoRA, B learns 16 times as fast as A"),
    "pissa": (LoRA(start="pissa"), "LoRA that starts at the largest singular values"),
    "qlora": (LoRA(base="bnb.nf4.dq"), "LoRA on a base in NF4 with double quantization"),
    "loftq": (LoRA(base="bnb.nf4.dq", start="loftq"), "QLoRA that starts at what storing the base lost"),
    "houlsby": (Bottleneck(after=("*.attention.output.dense", "*.output.dense", "*.o_proj", "*.down_proj")), "bottlenecks after attention and feed-forward"),
    "pfeiffer": (Bottleneck(after=("*.layer.[0-9].output.dense", "*.layer.[0-9][0-9].output.dense", "*.down_proj")), "bottlenecks after feed-forward"),
    "prompt": (Prompt(), "vectors before the input"),
    "prefix": (Prompt(deep=True), "vectors before keys and values"),
    "ia3": (IA3(), "scales of keys, values and inner activations"),
}


def load_method(given: "str | Path | dict[str, Any] | Method", **changes: Any) -> Method:
    """A method by name, from a YAML file or a dict. `changes` replace fields; None leaves them as they are. UnknownName, RecipeError."""
    if isinstance(given, Document):
        document = given.model_dump()
    elif isinstance(given, dict):
        document = {**load_method(given["name"]).model_dump(), **{k: v for k, v in given.items() if k != "name"}} if "name" in given else given
    elif str(given) in NAMED:
        document = NAMED[str(given)][0].model_dump()
    elif str(given).endswith((".yaml", ".yml")) and Path(given).is_file():
        document = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
    else:
        raise UnknownName(f"no method {str(given)!r}: {suggest(str(given), NAMED)}known: {', '.join(NAMED)}, or a .yaml file")
    try:
        return DOCUMENT.validate_python({**document, **{name: value for name, value in changes.items() if value is not None}})
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"method: {said}") from error
