"""The instruments of the simulated market, and how each of them trades."""

from dataclasses import dataclass, replace
from decimal import Decimal

from libs.margin import FUNDING_INTERVAL_SECONDS, MarginTier, Perpetual
from services.feeds.domain import AssetClass, Instrument

VENUE = "SIM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """How an instrument trades."""

    instrument: Instrument
    base_price: float
    yearly_volatility: float
    group: str
    """Instruments of one group move together."""
    group_share: float
    """Correlation of the level with the group's."""
    spread_ticks: float
    median_lots: float
    size_deviation: float
    """Of the logarithm of a trade's size."""
    level_lots: float
    """What usually rests at the best price."""
    impact_ticks: float
    """How far a trade of median size pushes the price."""
    follows: str = ""
    """The instrument whose level a perpetual future follows."""


def _instrument(
    symbol: str,
    description: str,
    kind: AssetClass,
    assets: tuple[str, str],
    steps: tuple[str, str],
    fees: tuple[str, str],
) -> Instrument:
    return Instrument(
        venue=VENUE,
        symbol=symbol,
        description=description,
        asset_class=kind,
        base_asset=assets[0],
        quote_asset=assets[1],
        tick_size=Decimal(steps[0]),
        lot_size=Decimal(steps[1]),
        minimum_notional=Decimal(1),
        maker_fee_rate=Decimal(fees[0]),
        taker_fee_rate=Decimal(fees[1]),
        has_book=True,
    )


_CRYPTO_FEES = ("0.0008", "0.001")
_EQUITY_FEES = ("0.00005", "0.0001")
_FOREX_FEES = ("0.00001", "0.00002")
_PERPETUAL_FEES = ("0.0002", "0.0005")

_SPOT = {
    character.instrument.instrument_id: character
    for character in (
        Character(
            instrument=_instrument(
                "BTCUSDT", "Bitcoin in Tether", AssetClass.CRYPTO, ("BTC", "USDT"), ("0.01", "0.00001"), _CRYPTO_FEES
            ),
            base_price=64_000,
            yearly_volatility=0.55,
            group="crypto",
            group_share=0.85,
            spread_ticks=60,
            median_lots=900,
            size_deviation=1.5,
            level_lots=40_000,
            impact_ticks=25,
        ),
        Character(
            instrument=_instrument(
                "ETHUSDT", "Ether in Tether", AssetClass.CRYPTO, ("ETH", "USDT"), ("0.01", "0.0001"), _CRYPTO_FEES
            ),
            base_price=3_100,
            yearly_volatility=0.7,
            group="crypto",
            group_share=0.85,
            spread_ticks=6,
            median_lots=1_800,
            size_deviation=1.5,
            level_lots=80_000,
            impact_ticks=2.5,
        ),
        Character(
            instrument=_instrument(
                "SOLUSDT", "Solana in Tether", AssetClass.CRYPTO, ("SOL", "USDT"), ("0.01", "0.001"), _CRYPTO_FEES
            ),
            base_price=160,
            yearly_volatility=0.9,
            group="crypto",
            group_share=0.75,
            spread_ticks=1.6,
            median_lots=3_000,
            size_deviation=1.4,
            level_lots=120_000,
            impact_ticks=0.4,
        ),
        Character(
            instrument=_instrument(
                "AAPL", "Apple Inc. common stock", AssetClass.EQUITY, ("AAPL", "USD"), ("0.01", "1"), _EQUITY_FEES
            ),
            base_price=230,
            yearly_volatility=0.28,
            group="equity",
            group_share=0.7,
            spread_ticks=1.4,
            median_lots=40,
            size_deviation=1.2,
            level_lots=600,
            impact_ticks=0.3,
        ),
        Character(
            instrument=_instrument(
                "MSFT",
                "Microsoft Corporation common stock",
                AssetClass.EQUITY,
                ("MSFT", "USD"),
                ("0.01", "1"),
                _EQUITY_FEES,
            ),
            base_price=430,
            yearly_volatility=0.25,
            group="equity",
            group_share=0.7,
            spread_ticks=2.5,
            median_lots=30,
            size_deviation=1.2,
            level_lots=400,
            impact_ticks=0.5,
        ),
        Character(
            instrument=_instrument(
                "EURUSD", "Euro in US dollars", AssetClass.FOREX, ("EUR", "USD"), ("0.00001", "1"), _FOREX_FEES
            ),
            base_price=1.085,
            yearly_volatility=0.08,
            group="forex",
            group_share=0.5,
            spread_ticks=4,
            median_lots=20_000,
            size_deviation=1.1,
            level_lots=900_000,
            impact_ticks=0.8,
        ),
    )
}


def _perpetual(spot: str, leverage_max: str, *tiers: tuple[str, str, str, str]) -> Character:
    """A perpetual future that trades as its spot market does, at lower fees. Tiers are floors, rates and amounts."""
    character = _SPOT[spot]
    instrument = replace(
        character.instrument,
        symbol=f"{character.instrument.symbol}-PERP",
        description=f"{character.instrument.description}, perpetual future",
        asset_class=AssetClass.PERPETUAL,
        maker_fee_rate=Decimal(_PERPETUAL_FEES[0]),
        taker_fee_rate=Decimal(_PERPETUAL_FEES[1]),
        perpetual=Perpetual(
            settle_asset=character.instrument.quote_asset,
            contract_size=Decimal(1),
            leverage_max=Decimal(leverage_max),
            margin_tiers=tuple(
                MarginTier(
                    notional_floor=Decimal(floor),
                    initial_margin_rate=Decimal(initial),
                    maintenance_margin_rate=Decimal(maintenance),
                    maintenance_amount=Decimal(amount),
                )
                for floor, initial, maintenance, amount in tiers
            ),
            funding_interval_seconds=FUNDING_INTERVAL_SECONDS,
        ),
    )
    return replace(character, instrument=instrument, follows=spot)


_PERPETUALS = (
    _perpetual(
        "SIM:BTCUSDT",
        "100",
        ("0", "0.01", "0.005", "0"),
        ("500000", "0.02", "0.01", "2500"),
        ("2500000", "0.05", "0.025", "40000"),
        ("10000000", "0.1", "0.05", "290000"),
        ("50000000", "0.2", "0.1", "2790000"),
    ),
    _perpetual(
        "SIM:ETHUSDT",
        "50",
        ("0", "0.02", "0.01", "0"),
        ("250000", "0.04", "0.02", "2500"),
        ("1000000", "0.1", "0.05", "32500"),
        ("5000000", "0.2", "0.1", "282500"),
    ),
)
CHARACTERS = _SPOT | {each.instrument.instrument_id: each for each in _PERPETUALS}
