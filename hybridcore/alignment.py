"""Whether the steps taken are too short or too long: the next gradient's view of the last step."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

__all__ = ["Alignment"]


class Alignment:
    """Cosines between the fresh part of an update and the update before.

    A step may be longer while the next gradient, of another batch, still points along it, and was too long
    where that gradient points back: the derivative of the expected loss by the step's length is
    ``-<g_t, u_(t-1)>``, the hypergradient of Almeida et al. (1998, "Parameter adaptation in stochastic
    optimization") and Baydin et al. (ICLR 2018, "Online learning rate adaptation with hypergradient
    descent"). Here g_t is known by what it did to the weights: ``e_t = u_t - beta u_(t-1)``, the fresh part
    of an update with first moment beta, is minus the gradient in the optimizer's own scaling. Only the
    cosine is kept, so that neither the size of gradients nor that of steps counts.

    What minimises the expected loss of the next step is shorter than what serves a whole run: a hypergradient
    is a cautious guide upwards, and a poor one below the user's own step.

    Args:
        window: Cosines kept, the newest.

    Attributes:
        count: Cosines seen so far.

    Example:
        >>> alignment = Alignment(window=4)
        >>> for cosine in (0.2, 0.3, 0.2, 0.3):
        ...     alignment.add(cosine)
        >>> alignment.samples, alignment.count
        ((0.2, 0.3, 0.2, 0.3), 4)
    """

    def __init__(self, window: int = 20) -> None:
        self._kept: deque[float] = deque(maxlen=window)
        self.count = 0

    @property
    def samples(self) -> tuple[float, ...]:
        """The newest cosines, the newest last."""
        return tuple(self._kept)

    def observe(self, fresh: float, before: float, shared: float) -> None:
        """Take in the fresh part of an update by its inner products with the update before.

        Args:
            fresh: ``<e_t, e_t>``.
            before: ``<u_(t-1), u_(t-1)>``.
            shared: ``<e_t, u_(t-1)>``.
        """
        scale = math.sqrt(fresh * before) if math.isfinite(fresh * before) else 0.0
        if scale > 0.0:
            self.add(shared / scale)

    def add(self, cosine: float) -> None:
        """Take in a cosine."""
        self._kept.append(min(max(cosine, -1.0), 1.0))
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """State as plain data."""
        return {"kept": list(self._kept), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._kept.clear()
        self._kept.extend(state["kept"])
        self.count = int(state["count"])
