"""What an operator may turn, with the units in the names."""

from decimal import Decimal
from typing import ClassVar

from libs.mesh.settings import ServiceSettings


class Settings(ServiceSettings):
    word: ClassVar[str] = "orders"

    accounts_max: int = 50
    open_orders_max: int = 1_000
    # A market order needs a quote that is no older.
    quote_age_seconds_max: float = 10.0
    quote_poll_seconds: float = 0.1
    # How far beyond the quote a market order may trade, as a fraction of the price.
    market_protection: Decimal = Decimal("0.05")
    # Orders that share one transaction, and those that may be on their way.
    batch_orders_max: int = 100
    waiting_orders_max: int = 2_000
    # Accounts that others have locked and that are waited for at once; each takes a database connection.
    locked_accounts_max: int = 4
