"""Ledger of a budget: what calls may cost is reserved before they are made, and settled to what they cost after.

What must outlive a kill is one number an account: what was spent and what is reserved, together. It is written
before a reservation is granted, so after a kill every call that may have been made is in it, at its upper bound:
nothing is overspent. One number needs no journal to replay and no database: it is replaced as a whole by the
atomic write that a work folder has on a disk as in an object store, where a file can be neither appended to nor
locked. Reservations that arrive during a write share the next one, so a slow store delays calls and doesn't
serialize them.

Amounts are whole billionths of a dollar (`prices.nano_usd`). Pure asyncio; the ledger of a run is a Ray actor.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from llm_blender_ray.actors.errors import RejectedError

Balances = Mapping[str, int]  # spent and reserved, by account


class BudgetError(RejectedError):
    """A call was not made, because its budget has no room for it. Its LLM works: no circuit breaker counts it."""


@dataclass(frozen=True, slots=True)
class Payer:
    """Request of the service that calls are charged to.

    Attributes:
        request: Unique id of the request.
        key: Name of its API key.
        began: When, in UTC.
    """

    request: str
    key: str
    began: datetime


_payer: ContextVar[Payer | None] = ContextVar("payer", default=None)


def charge_to(payer: Payer | None) -> None:
    """Charge the calls that the running task makes from now on. Set before every call, so it is never reset."""
    _payer.set(payer)


def current_payer() -> Payer | None:
    """Request that the running task's calls are charged to; None: none, as in a bulk run."""
    return _payer.get()


@dataclass(frozen=True, slots=True)
class BudgetReservation:
    """Part of an account that is reserved for one call."""

    account: str
    amount: int
    id: str


class Budget(Protocol):
    """A `BudgetLedger`, here or in another process."""

    async def reserve(self, account: str, amount: int, seconds: float) -> BudgetReservation | None:
        """See `BudgetLedger`."""
        ...

    async def settle(self, reservation: BudgetReservation, amount: int) -> None:
        """See `BudgetLedger`."""
        ...


@dataclass(slots=True)
class _Account:
    held: int = 0  # spent and reserved
    open: set[str] = field(default_factory=set)  # reservations whose call may still end
    waiting: deque[tuple[BudgetReservation, asyncio.Future[bool]]] = field(default_factory=deque)  # True: granted
    closed: bool = False
    timed: int = 0  # granted reservations whose time is not over


class BudgetLedger:
    """Accounts with one limit. It belongs to the event loop of its first call."""

    def __init__(
        self, limit: int, balances: Balances, save: Callable[[Balances], None] | None, *, closes: bool = False
    ) -> None:
        """Open the accounts.

        Args:
            limit: Most that each account may spend.
            balances: What `save` was last called with.
            save: Writes the balances so that they survive a kill; called in a thread, one call at a time. None:
                they needn't, and an account is dropped when the time of all its reservations is over.
            closes: Whether an account that has refused one reservation refuses all that follow. Otherwise smaller
                ones may still fit.
        """
        self._limit, self._save, self._closes = limit, save, closes
        self._accounts = {name: _Account(held) for name, held in balances.items()}
        self._version = self._saved = 0  # of the balances: now, and as written
        self._writing: asyncio.Task[None] | None = None

    async def reserve(self, account: str, amount: int, seconds: float) -> BudgetReservation | None:
        """Reserve the upper bound of a call's cost. The call may be made once this has returned a reservation.

        Reservations are granted in order. One that doesn't fit waits while calls of the account are open: they
        settle to less than their bounds.

        Args:
            account: Name of the account, which need not exist.
            amount: Upper bound of the cost.
            seconds: After which the call has ended, whether it is settled or not.

        Returns:
            None: there is no room for it.

        Raises:
            Exception: What `save` raises; the call must not be made.
        """
        entry = self._accounts.setdefault(account, _Account())
        reservation = BudgetReservation(account, amount, uuid.uuid4().hex)
        granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        entry.waiting.append((reservation, granted))
        self._advance(entry)
        try:
            if not await granted:
                self._drop(account, entry)
                return None
            await self._written()
        except BaseException:  # cancelled, or not written: the call is not made
            if granted.done() and not granted.cancelled() and granted.result():
                self._end(entry, reservation, -amount)
            self._drop(account, entry)
            raise
        entry.timed += 1
        asyncio.get_running_loop().call_later(seconds, self._expire, entry, reservation)
        return reservation

    async def settle(self, reservation: BudgetReservation, amount: int) -> None:
        """Replace the bound of a call by what it cost, also after it was taken for ended.

        A call that is never settled has cost its bound.
        """
        entry = self._accounts.setdefault(reservation.account, _Account())
        self._end(entry, reservation, amount - reservation.amount)
        self._drop(reservation.account, entry)

    async def balances(self) -> Balances:
        """What is spent and reserved, by account, after writing it."""
        self._version += 1
        await self._written()
        return self._balances()

    def _balances(self) -> dict[str, int]:
        return {name: entry.held for name, entry in self._accounts.items()}

    def _fits(self, entry: _Account, amount: int) -> bool:
        return not entry.closed and entry.held + amount <= self._limit

    def _end(self, entry: _Account, reservation: BudgetReservation, change: int = 0) -> None:
        """A call has ended, and its account changes by an amount."""
        entry.open.discard(reservation.id)
        entry.held += change
        self._version += 1
        self._advance(entry)

    def _expire(self, entry: _Account, reservation: BudgetReservation) -> None:
        entry.timed -= 1
        self._end(entry, reservation)
        self._drop(reservation.account, entry)

    def _drop(self, account: str, entry: _Account) -> None:
        """Drop an account that needn't outlive its calls, after the last one."""
        if self._save is None and not (entry.timed or entry.open or entry.waiting):
            self._accounts.pop(account, None)

    def _advance(self, entry: _Account) -> None:
        """Grant or refuse those who wait, in order."""
        while entry.waiting:
            reservation, granted = entry.waiting[0]
            fits = self._fits(entry, reservation.amount)
            if not granted.done():  # else cancelled
                if not fits and entry.open and not entry.closed:
                    return
                if fits:
                    entry.held += reservation.amount
                    entry.open.add(reservation.id)
                else:
                    entry.closed = self._closes
                granted.set_result(fits)
            entry.waiting.popleft()

    async def _written(self) -> None:
        """Return once balances are written that are at least those of now."""
        if self._save is None:
            return
        self._version += 1
        version = self._version
        while self._saved < version:
            if self._writing is None:
                self._writing = asyncio.get_running_loop().create_task(self._write())
            await asyncio.shield(self._writing)

    async def _write(self) -> None:
        version = self._version
        assert self._save is not None  # else nothing is written
        try:
            await asyncio.to_thread(self._save, self._balances())
            self._saved = version
        finally:
            self._writing = None
