"""What an operator may turn, with the units in the names."""

from typing import ClassVar

from pydantic import Field, PositiveFloat

from libs.mesh.settings import ServiceSettings
from services.execution.venues.ccxt_port import Addresses


class Settings(ServiceSettings):
    word: ClassVar[str] = "execution"

    # Market time between the quote an order was decided on and its arrival at the paper venue; also between the print
    # that reaches a stop and the arrival of what it becomes.
    paper_latency_milliseconds: int = Field(default=0, ge=0)
    # By how much of its price, in hundredths of a percent, an order that takes gets a worse one, within what it accepts.
    paper_slippage_basis_points: int = Field(default=0, ge=0, lt=10_000)
    # An order that may not rest is canceled when its instrument has brought no market data for so long.
    paper_patience_seconds: float = Field(default=30.0, gt=0)
    # New orders, and as many cancels, that the paper venue takes in at a time.
    paper_orders_at_once_max: int = Field(default=1_000, gt=0)
    # The place in the ticks is committed at least so often, so that a restart does not read them again.
    paper_cursor_seconds: float = Field(default=5.0, gt=0)

    # Live accounts that one replica carries at most; those beyond wait for another replica, and health says so.
    live_accounts_max: int = Field(default=200, gt=0)
    # A live account is compared with its venue so often, beside when it is connected anew and when an operator asks.
    reconcile_seconds: PositiveFloat = 60.0
    # An order whose outcome is unknown for longer is told as an error, counted, and listed as alerted.
    unknown_alert_seconds: PositiveFloat = 60.0

    user_service_url: str = "127.0.0.1:18001"
    binance_url: str = "https://api.binance.com"
    kraken_url: str = "https://api.kraken.com"
    # And their servers of what happens to accounts, if not where everybody finds them.
    binance_account_stream_url: str = ""
    kraken_account_stream_url: str = ""
    # Of perpetual futures.
    binance_futures_url: str = "https://fapi.binance.com"
    binance_futures_account_stream_url: str = ""
    # Names the address that venues see requests come from, as FEEDS_FROM_ADDRESS does: who shares it shares what may be asked.
    from_address: str = "default"
    # A venue that is asked what a key may do has so long to answer; below the ten seconds that users waits.
    venue_check_seconds: PositiveFloat = Field(default=7.0, lt=10)

    @property
    def addresses(self) -> dict[str, Addresses]:
        return {
            "BINANCE": Addresses(self.binance_url, self.binance_account_stream_url),
            "BINANCEUSDM": Addresses(self.binance_futures_url, self.binance_futures_account_stream_url),
            "KRAKEN": Addresses(self.kraken_url, self.kraken_account_stream_url),
        }
