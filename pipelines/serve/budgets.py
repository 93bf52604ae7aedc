"""Budgets of the service's requests: one ledger for all replicas, a deployment of its own.

A request and its API key (`Payer`) travel with the prompt to every call that is made for it: of members, of a
judge, whose calls for several requests may share a batch, and of the fuser. A call is made once both accounts have
room.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from llm_blender_ray.actors.budget import (
    Balances,
    BudgetError,
    BudgetLedger,
    BudgetReservation,
    Payer,
    current_payer,
)
from llm_blender_ray.actors.errors import UNPAID, BlendError, RejectedError, one_line
from llm_blender_ray.actors.prices import NANO, TokenPrice, check_prices, nano_usd
from llm_blender_ray.configs.prices import BudgetSettings
from llm_blender_ray.configs.schema import BlendConfig
from llm_blender_ray.pipelines.rows.uris import renaming

PER_REQUEST, PER_DAY = "usd_per_request", "usd_per_key_per_day"  # settings of `budget`
SPENDING_FILE = "blend-spending.json"
ROOM_S = 5.0  # that a call waits for room while others of its account may end below their bounds
LOCK_S = 60.0  # that a ledger waits for an earlier one to end, in an update
LOCK_POLL_S = 0.2


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JointReservation(BudgetReservation):
    """Part of several accounts that is reserved for one call."""

    parts: Mapping[str, BudgetReservation] = field(default_factory=dict)  # by the accounts' settings


class SharedLedger(Protocol):
    """A `ServiceLedger`, here or in another process."""

    async def reserve(self, payer: Payer, amount: int, seconds: float) -> JointReservation | str:
        """See `ServiceLedger`."""
        ...

    async def settle(self, reservation: JointReservation, amount: int) -> None:
        """See `ServiceLedger`."""
        ...


class ServiceLedger:
    """Ledger of what each request, and each API key today (UTC), may spend."""

    def __init__(
        self,
        budget: BudgetSettings,
        file: str | None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        room_s: float = ROOM_S,
    ) -> None:
        """Open the accounts, with what the keys have spent today.

        Args:
            budget: The limits.
            file: Where the balances of a day survive a kill; needed if keys have a budget.
            clock: The time, in UTC.
            room_s: Seconds that a call waits for room.

        Raises:
            BlendError: The file is damaged, can't be used, or is another service's.
        """
        self._clock, self._room_s = clock, room_s
        self._started = clock()
        self._lock: int | None = None
        self._ledgers: dict[str, BudgetLedger] = {}  # by their settings, in the order of reserving: no deadlock
        if budget.usd_per_request is not None:
            self._ledgers[PER_REQUEST] = BudgetLedger(nano_usd(budget.usd_per_request), {}, None)
        if budget.usd_per_key_per_day is not None:
            assert file is not None
            self._file = Path(file)
            self._lock = _locked(self._file)
            limit = nano_usd(budget.usd_per_key_per_day)
            self._ledgers[PER_DAY] = BudgetLedger(limit, self._read(), self._save)

    async def reserve(self, payer: Payer, amount: int, seconds: float) -> JointReservation | str:
        """Reserve the upper bound of a call's cost in all accounts, or in none.

        Args:
            payer: Whom it is charged to.
            amount: Upper bound of the cost.
            seconds: After which the call has ended, whether it is settled or not.

        Returns:
            The reservation, or the name of the setting that leaves no room for it.

        Raises:
            OSError: The balances can't be written; the call must not be made.
            RejectedError: The request is older than this ledger.
        """
        if PER_REQUEST in self._ledgers and payer.began < self._started:
            raise RejectedError("it has restarted, and what this request had spent is unknown")
        accounts = {PER_REQUEST: payer.request, PER_DAY: f"{self._today}/{payer.key}"}
        held: dict[str, BudgetReservation] = {}
        try:
            for name, ledger in self._ledgers.items():
                one = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._room_s):
                        one = await ledger.reserve(accounts[name], amount, seconds)
                if one is None:
                    await self._settle(held, 0)
                    return name
                held[name] = one
        except BaseException:  # cancelled, or not written
            await self._settle(held, 0)
            raise
        return JointReservation(payer.request, amount, uuid.uuid4().hex, held)

    async def settle(self, reservation: JointReservation, amount: int) -> None:
        """Replace the bound of a call by what it cost."""
        await self._settle(reservation.parts, amount)

    async def _settle(self, parts: Mapping[str, BudgetReservation], amount: int) -> None:
        for name, part in parts.items():
            if name in self._ledgers:  # else an update has removed its limit
                await self._ledgers[name].settle(part, amount)

    def close(self) -> None:
        """Leave the file to another ledger; the end of the process does that, too."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def balances(self) -> Balances:
        """What is spent and reserved today, by `DAY/KEY`."""
        days = self._ledgers.get(PER_DAY)
        return self._of_today(await days.balances()) if days else {}

    @property
    def _today(self) -> str:
        return self._clock().date().isoformat()

    def _of_today(self, balances: Balances) -> dict[str, int]:
        return {name: amount for name, amount in balances.items() if name.startswith(f"{self._today}/")}

    def _save(self, balances: Balances) -> None:
        content = json.dumps({"nano_usd": self._of_today(balances)}, indent=2)
        with renaming(str(self._file)) as file:
            file.write(content.encode())

    def _read(self) -> dict[str, int]:
        try:
            return self._of_today(_balances_in(self._file.read_bytes()))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise BlendError(f"serve.spending {self._file}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BlendError(
                f"serve.spending {self._file}: damaged, so what was spent today is unknown; "
                "remove it to count from zero"
            ) from error


def _balances_in(content: bytes) -> Mapping[str, int]:
    return {str(name): int(amount) for name, amount in json.loads(content)["nano_usd"].items()}


def _locked(path: Path) -> int:
    """Lock the file for this process: an update starts the next ledger before the earlier one has ended.

    Returns:
        The lock's file descriptor; the lock ends with the process.

    Raises:
        BlendError: It can't be locked.
    """
    until = time.monotonic() + LOCK_S
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BlendError(f"serve.spending {path}: {error.strerror}") from error
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            if time.monotonic() > until:
                os.close(lock)
                raise BlendError(f"serve.spending {path}: another service uses it") from error
            time.sleep(LOCK_POLL_S)


@dataclass(frozen=True, slots=True)
class RequestBudget:
    """The service's ledger for the calls of one part: each is charged to the request that it is made for."""

    ledger: SharedLedger

    async def reserve(self, account: str, amount: int, seconds: float) -> BudgetReservation | None:
        """See `actors.budget.BudgetLedger`; the accounts are those of the current payer.

        Raises:
            BudgetError: There is no room for it.
            RejectedError: The ledger can't be asked.
        """
        if (payer := current_payer()) is None:
            raise BudgetError(f"{UNPAID}: the call belongs to no request")
        try:
            found = await self.ledger.reserve(payer, amount, seconds)
        except Exception as error:  # whatever the ledger or the way to it raises
            raise RejectedError(f"the budget's ledger can't be asked: {one_line(error)}") from error
        if isinstance(found, str):
            raise BudgetError(f"{UNPAID}: budget.{found} has no room for a call that may cost ${amount / NANO:.3g}")
        return found

    async def settle(self, reservation: BudgetReservation, amount: int) -> None:
        """See `actors.budget.BudgetLedger`. Not retried: settled twice, it would free what was spent."""
        assert isinstance(reservation, JointReservation)
        try:
            await self.ledger.settle(reservation, amount)
        except Exception as error:  # the answer is there all the same
            _log.warning("a call counts as its upper bound, since the budget's ledger failed: %s", one_line(error))


@dataclass(frozen=True, slots=True)
class Bill:
    """How a part's calls are charged.

    Attributes:
        ledger: Deployment of the ledger.
        price: Of the part's tokens.
    """

    ledger: Any
    price: TokenPrice


def check_budget(config: BlendConfig) -> None:
    """Check that requests' budgets can bound what each part spends.

    Raises:
        BlendError: A price is unknown.
    """
    if config.budget.bounds_requests:
        check_prices(config.parts, config.prices)


def spending_file(config: BlendConfig, *, local: bool) -> str | None:
    """Path of the file of what the keys have spent; None: keys have no budget.

    Args:
        config: The config.
        local: Whether the service runs on this machine: then the current folder is the default.

    Raises:
        BlendError: On a cluster, it is not set.
    """
    serving = config.serve
    if config.budget.usd_per_key_per_day is None:
        return None
    if serving.spending is not None:
        return serving.spending
    if serving.votes is not None:
        return str(Path(serving.votes).with_name(SPENDING_FILE))
    if not local:
        raise BlendError(
            "budget.usd_per_key_per_day: on a cluster, set serve.spending to a file on a disk that all nodes share"
        )
    return str(Path(SPENDING_FILE).absolute())
