"""Which kernel set does which operation in a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from hybridcore.kernels.chosen import OPERATIONS, ChosenKernels, KernelChoice
from hybridcore.kernels.reference import REFERENCE
from hybridcore.kernels.trial import ELEMENTS, JUDGED, TYPICAL, Sample, difference, seconds
from hybridcore.protocols import Adapter, KernelSet, RolloutSizes

__all__ = ["choose", "is_accelerator"]

logger = logging.getLogger("hybridcore")

MARGIN = 0.95
"""Share of the reference's time that a kernel may take at most; near ties stay with the reference."""


def choose(
    name: str,
    classes: Mapping[str, type[Any]],
    adapter: Adapter,
    *,
    elements: int | None = None,
    sizes: RolloutSizes | None = TYPICAL,
) -> ChosenKernels:
    """Kernels of a run (``kernels.name``), tried once on the adapter's device.

    Args:
        name: ``"auto"``, ``"reference"``, or a registry name.
        classes: Kernel set classes by registry name.
        adapter: Gives namespace, device, size and clock.
        elements: Numbers per array in the trial; as many as the model has weights, up to `ELEMENTS`, if None.
        sizes: Of the roll-outs that the run asks for; none is tried, and the reference does it, if None.

    Returns:
        The kernels; every doubt (a wrong result, a missing toolkit, no memory, no gain) means the reference,
        and a fault is one warning.

    Example:
        >>> from hybridcore.reference import quadratic
        >>> choose("auto", {}, quadratic(seed=0)).used("gram")
        'reference'
    """
    if name == REFERENCE.name:
        return ChosenKernels({}, _all("asked for"))
    if name == "auto" and not is_accelerator(adapter.device):
        return ChosenKernels({}, _all("on the CPU nothing else is tried"))
    wanted = [n for n in classes if n != REFERENCE.name] if name == "auto" else [name]
    count = min(ELEMENTS, adapter.layout.total) if elements is None else elements
    best: dict[str, KernelSet] = {}
    choices = {choice.operation: choice for choice in _all("no kernel set serves this device")}
    for each in wanted:
        found = _try(each, classes[each], adapter, count, sizes, timed=name == "auto")
        if isinstance(found, str):
            choices = {op: c if op in best else _reference(op, found) for op, c in choices.items()}
            continue
        kernels, tried = found
        for operation, choice in tried.items():
            old = choices[operation]
            if operation in best and not choice.seconds < old.seconds:
                continue
            choices[operation] = choice
            if choice.name != REFERENCE.name:
                best[operation] = kernels
    return ChosenKernels(best, tuple(choices.values()))


def is_accelerator(device: str) -> bool:
    """Whether a device's name, in its framework's own words, is not a processor's.

    Example:
        >>> is_accelerator("cuda:0"), is_accelerator("TFRT_CPU_0")
        (True, False)
    """
    return "cpu" not in device.lower()


def _try(
    name: str,
    cls: type[Any],
    adapter: Adapter,
    count: int,
    sizes: RolloutSizes | None,
    *,
    timed: bool,
) -> tuple[KernelSet, dict[str, KernelChoice]] | str:
    """The kernel set with a choice per operation, or why it is not used at all."""
    xp = adapter.xp
    try:
        kernels: KernelSet = cls()
        if not kernels.supports(xp, adapter.device, adapter.layout.bucket_dtype):
            reason = (
                f"{name} does not serve {adapter.layout.bucket_dtype} of {xp.__name__} on {adapter.device}"
            )
            if not timed:
                logger.warning("kernel set %s; the Array API reference is used", reason)
            return kernels, {op: _reference(op, reason) for op in OPERATIONS}
        like = adapter.read_params()[0]
        judged = Sample.make(xp, like, min(count, JUDGED), sizes)
        tried = tuple(judged.calls)
        found = {op: difference(judged, op, judged.calls[op](kernels)) for op in tried}
        wrong = {op: how for op, how in found.items() if how}
        if timed:
            del judged
            sample = Sample.make(xp, like, count, sizes)
            choices = {op: _compare(kernels, op, sample, adapter) for op in tried if op not in wrong}
        else:
            words = "asked for, and right"
            choices = {op: KernelChoice(op, kernels.name, words) for op in tried if op not in wrong}
        unused = [op for op in OPERATIONS if op not in tried]
        choices |= {op: _reference(op, "nothing in this run asks for it") for op in unused}
        choices |= {op: _reference(op, f"wrong result of {kernels.name}: {how}") for op, how in wrong.items()}
    except Exception as error:
        reason = f"{name} failed in its trial: {type(error).__name__}: {error}"
        logger.warning("kernel set %s; the Array API reference is used, nothing is lost", reason)
        return reason
    if wrong:
        logger.warning(
            "kernel set %s gives wrong results (%s); the Array API reference does these operations",
            name,
            "; ".join(f"{op}: {how}" for op, how in wrong.items()),
        )
    return kernels, {operation: choices[operation] for operation in OPERATIONS}


def _compare(kernels: KernelSet, operation: str, sample: Sample, adapter: Adapter) -> KernelChoice:
    call = sample.calls[operation]
    own = seconds(lambda: call(kernels), adapter.synchronize)
    theirs = seconds(lambda: call(REFERENCE), adapter.synchronize)
    words = f"{kernels.name} {1e6 * own:.0f} us, reference {1e6 * theirs:.0f} us"
    chosen = kernels.name if own < MARGIN * theirs else REFERENCE.name
    return KernelChoice(operation, chosen, words, own, theirs)


def _reference(operation: str, reason: str) -> KernelChoice:
    return KernelChoice(operation, REFERENCE.name, reason)


def _all(reason: str) -> tuple[KernelChoice, ...]:
    return tuple(_reference(operation, reason) for operation in OPERATIONS)
