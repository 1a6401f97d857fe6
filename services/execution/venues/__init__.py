"""The venues orders can be sent to, and what a venue beyond the network has to offer."""

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from services.execution.domain import Event, Order


class Venue(Protocol):
    """A venue beyond the network, whose every answer may be lost.

    An order is sent once, after its move from INTENDED to SENDING is committed under the lease of its account; whoever
    finds it in SENDING later does not send it again, but asks order() and fills_since(). The paper venue needs none of
    this: its orders, fills and place in the market are rows of this service, so an order goes from INTENDED to what the
    market makes of it in one transaction.
    """

    async def submit(self, order: Order) -> Event:
        """Sends an order under its order_id; Accepted or Rejected. TimeoutError and OSError: nobody knows."""
        ...

    async def cancel(self, order: Order) -> Event:
        """Asks to take an order back; Canceled or CancelRejected. TimeoutError and OSError: nobody knows."""
        ...

    async def open_orders(self) -> Sequence[UUID]:
        """The order_ids that the venue has and that may still trade."""
        ...

    async def order(self, order: Order) -> Event | None:
        """The venue's own record of what became of an order; None if it has never heard of it."""
        ...

    async def fills_since(self, cursor: str) -> tuple[Sequence[tuple[UUID, Event]], str]:
        """The fills after a cursor, by order_id, and the cursor after them; an empty cursor starts with the oldest kept."""
        ...
