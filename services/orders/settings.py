"""What an operator may turn, with the units in the names."""

from decimal import Decimal
from typing import ClassVar

from pydantic import Field

from libs.mesh.settings import ServiceSettings


class Settings(ServiceSettings):
    word: ClassVar[str] = "orders"

    accounts_max: int = 50
    # Parent orders of one account that are under way at once.
    parent_orders_max: int = Field(default=100, ge=1)
    # What accounts are held to that have set no limits of their own.
    open_orders_max: int = Field(default=1_000, ge=1)
    orders_per_second_max: int = Field(default=100, ge=1)
    price_collar_percent: Decimal = Field(default=Decimal(10), gt=0, le=100)
    # A market order needs a quote that is no older.
    quote_age_seconds_max: float = 10.0
    quote_poll_seconds: float = 0.1
    # How far beyond the quote a market order may trade, as a fraction of the price.
    market_protection: Decimal = Decimal("0.05")
    # An order of a live account is sent to its venue within so many seconds, or not at all.
    live_send_seconds: float = Field(default=30.0, gt=0, le=600)
    # Orders that share one transaction, and those that may be on their way.
    batch_orders_max: int = 100
    waiting_orders_max: int = 2_000
    # Accounts that others have locked and that are waited for at once; each takes a database connection.
    locked_accounts_max: int = 4
