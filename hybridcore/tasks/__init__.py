"""Built-in tasks on real data that ships in packages, one per file; nothing here imports a framework.

A task turns its options into a `Problem`: initial weights, batches and splits as NumPy arrays. An adapter
builds the model, so that every framework starts from the same weights and sees the same examples.
"""

from __future__ import annotations

__all__ = ["BUILTIN"]

BUILTIN: tuple[str, ...] = (
    "hybridcore.tasks.digits_mlp:DigitsMlp",
    "hybridcore.tasks.mnist_mlp:MnistMlp",
    "hybridcore.tasks.mnist_cnn:MnistCnn",
    "hybridcore.tasks.stdlib_gpt:StdlibGpt",
    "hybridcore.tasks.finetune_gpt:FinetuneGpt",
    "hybridcore.tasks.lora_gpt:LoraGpt",
    "hybridcore.tasks.poisson_pinn:PoissonPinn",
    "hybridcore.tasks.convection_pinn:ConvectionPinn",
)
"""``module:class`` of every built-in task, imported only when a task is looked up."""
