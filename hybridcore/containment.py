"""Calls into plugins: a failure is named, and the run goes on without the plugin (F42)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, TypeVar

import attrs

from hybridcore.config import PluginsConfig
from hybridcore.errors import DivergenceError, HybridCoreError, MemoryBudgetError, PluginFailedError
from hybridcore.watchdog import Call, TookTooLong, Watchdog

__all__ = ["Containment", "Failure", "Member"]

logger = logging.getLogger("hybridcore")

T = TypeVar("T")

Member = tuple[str, str, Callable[..., Any]]
"""Kind, registry name and bound method of one of several plugins that are called in a row."""

_PASS = (MemoryBudgetError, DivergenceError, PluginFailedError)


@attrs.frozen
class Failure:
    """What a plugin did.

    Attributes:
        kind: Such as ``"predictor"``.
        name: Registry name.
        method: What was called.
        error: What it raised, or what is wrong with what it returned.
    """

    kind: str
    name: str
    method: str
    error: Exception

    @property
    def reason(self) -> str:
        """The error on one line."""
        what = self.error.what if isinstance(self.error, HybridCoreError) else str(self.error)
        return f"{type(self.error).__name__}: {what}".splitlines()[0] if what else type(self.error).__name__


class Containment:
    """Calls plugins of one run.

    An `Exception` that a plugin raises, or a call that takes too long, drops the plugin: it is logged, told,
    and whoever owns the plugin puts a harmless substitute in its place. With ``plugins.on_error = "raise"``
    it is raised as a `PluginFailedError` instead, after the open trial was undone. `MemoryBudgetError` and
    `DivergenceError` are no plugin's fault and pass, and so does what is no `Exception`, such as
    KeyboardInterrupt.

    Args:
        config: Table ``[plugins]``; the defaults if None.

    Attributes:
        substitute: By kind, what puts a substitute in the place of the plugin of a name.
        tell: Hears of each failure.
        make_sound: Called before an error is raised.
        failures: All so far.

    Example:
        >>> containment = Containment()
        >>> logger.disabled = True
        >>> containment.call("predictor", "careless", "ready", lambda: 1 / 0, otherwise=False)
        False
        >>> containment.failures[0].reason
        'ZeroDivisionError: division by zero'
        >>> logger.disabled = False
    """

    def __init__(self, config: PluginsConfig | None = None) -> None:
        config = config if config is not None else PluginsConfig()
        self._raises = config.on_error == "raise"
        self.watchdog = Watchdog(config.timeout_seconds)
        self.substitute: dict[str, Callable[[str], None]] = {}
        self.tell: Callable[[Failure], None] = lambda failure: None
        self.make_sound: Callable[[], None] = lambda: None
        self.failures: list[Failure] = []

    def call(
        self,
        kind: str,
        name: str,
        method: str,
        function: Callable[..., T],
        *args: Any,
        otherwise: T,
        check: Callable[[T], object] | None = None,
        passes: tuple[type[Exception], ...] = (),
    ) -> T:
        """What a plugin returns.

        Args:
            kind: Such as ``"predictor"``.
            name: Registry name.
            method: What is called, for messages.
            function: What is called.
            args: Its arguments.
            otherwise: Given where the plugin fails.
            check: Raises where the plugin must not return that.
            passes: Errors that the caller deals with.

        Raises:
            PluginFailedError: The plugin failed, and ``plugins.on_error`` is ``"raise"``.
        """
        dog, call = self.watchdog, [(kind, name), method, get_ident()]
        calls = dog.calls
        try:  # `dog.enter` and `dog.leave`, spelt out: this happens several times per step
            calls.append(call)
            if dog.sleeps:
                dog.wake()
            result = function(*args)
            if check is not None:
                check(result)
            calls.pop()
            if dog.fired is not None:
                dog.take_back()
            return result
        except BaseException as error:
            # An exception by the watchdog comes once at most, and may come as late as here.
            try:
                dog.leave(call)
            except TookTooLong:
                dog.leave(call)
            if isinstance(error, (*_PASS, *passes)) or not isinstance(error, (Exception, TookTooLong)):
                raise
            self.failed(kind, name, method, error)
            return otherwise

    def each(
        self, method: str, members: Sequence[Member], *args: Any, drop: Callable[[Member], None] | None = None
    ) -> None:
        """Call several plugins in a row; one that fails keeps no other from its turn.

        Args:
            method: What is called, for messages.
            members: The plugins' bound methods.
            args: Their arguments.
            drop: Removes one that failed; the substitute of its kind takes its place if None.

        Raises:
            PluginFailedError: As in `call`.
        """
        dog, rest, member = self.watchdog, iter(members), None
        calls = dog.calls
        while True:
            call: Call = [("", ""), method, get_ident()]
            try:
                calls.append(call)
                if dog.sleeps:
                    dog.wake()
                for member in rest:
                    call[0] = member
                    member[2](*args)
                calls.pop()
                if dog.fired is not None:
                    dog.take_back()
                return
            except BaseException as error:
                try:
                    dog.leave(call)
                except TookTooLong:
                    dog.leave(call)
                if isinstance(error, _PASS) or not isinstance(error, (Exception, TookTooLong)):
                    raise
                if member is not None:
                    put = None if drop is None else lambda name, lost=member: drop(lost)
                    self.failed(member[0], member[1], method, error, put)

    @contextmanager
    def own_code(self) -> Iterator[None]:
        """Context of the engine's own code that a plugin calls back.

        It is not interrupted, and the time that it takes is not the plugin's.
        """
        call: Call = [None, "", get_ident()]
        try:
            self.watchdog.enter(call)
            yield
        finally:
            self.watchdog.leave(call)

    def failed(
        self,
        kind: str,
        name: str,
        method: str,
        error: BaseException,
        substitute: Callable[[str], None] | None = None,
    ) -> None:
        """Drop a plugin, or raise where the configuration says so.

        Args:
            kind: Such as ``"predictor"``.
            name: Registry name.
            method: What was called.
            error: What it raised.
            substitute: Puts something else in its place; what `substitute` holds for its kind if None.

        Raises:
            PluginFailedError: ``plugins.on_error`` is ``"raise"``.
        """
        cause = error if isinstance(error, Exception) else self._timeout()
        failure = Failure(kind, name, method, cause)
        self.failures.append(failure)
        if self._raises:
            self.make_sound()
            raise PluginFailedError(
                f"the {kind} {name!r} failed in {method}: {failure.reason}",
                where=f"{kind} {name!r}",
                fix='correct it, choose another, or go on without it: plugins.on_error = "drop"',
            ) from cause
        logger.warning(
            "the %s %r failed in %s and is dropped for the rest of the run: %s",
            kind,
            name,
            method,
            failure.reason,
        )
        logger.debug("where %r failed", name, exc_info=cause)
        put = substitute if substitute is not None else self.substitute.get(kind)
        if put is not None:
            put(name)
        self.tell(failure)

    def _timeout(self) -> TimeoutError:
        return TimeoutError(f"took longer than plugins.timeout_seconds = {self.watchdog.seconds:g}")

    @property
    def dropped(self) -> list[list[str]]:
        """Kind and name of each dropped plugin, in order."""
        return [[failure.kind, failure.name] for failure in self.failures]

    def drop_again(self, dropped: Sequence[Sequence[str]]) -> None:
        """Put substitutes where a run that goes on had them."""
        for kind, name in dropped:
            if kind in self.substitute:
                self.failures.append(Failure(kind, name, "", RuntimeError("it was dropped before")))
                self.substitute[kind](name)
