"""Fine-tuning with few parameters. Everything here is PyTorch but the documents; names are loaded when they are used."""

from importlib import import_module

WHERE = {
    "LoRALayer": "lora",
    "LinearWithLoRA": "lora",
    "QuantizedLinear": "quantized",
    "adapt": "adapting",
    "trainable_table": "adapting",
    "save_adapter": "adapter_file",
    "load_adapter": "adapter_file",
    "Budget": "budget",
    "Samples": "batches",
    "pack": "text",
    "pad": "text",
    "load_method": "methods",
    "finetune": "tuning",
    "predict_memory": "memory",
}
__all__ = list(WHERE)


def __getattr__(name: str):
    if name not in WHERE:
        raise AttributeError(f"module 'compress.finetune' has no attribute {name!r}")
    return getattr(import_module(f"compress.finetune.{WHERE[name]}"), name)
