"""The terms of perpetual futures as the contract has them: every service that knows instruments translates them alike."""

from tradeloom.marketdata.v1 import perpetuals_pb2

from libs.margin import ONE, MarginTier, Perpetual, usual_tiers
from libs.mesh.wire import decimal_from_proto, decimal_to_proto


def perpetual_to_proto(perpetual: Perpetual | None) -> perpetuals_pb2.Perpetual | None:
    """None stays unset."""
    if perpetual is None:
        return None
    return perpetuals_pb2.Perpetual(
        settle_asset=perpetual.settle_asset,
        contract_size=decimal_to_proto(perpetual.contract_size),
        leverage_max=decimal_to_proto(perpetual.leverage_max),
        margin_tiers=[
            perpetuals_pb2.MarginTier(
                notional_floor=decimal_to_proto(tier.notional_floor),
                initial_margin_rate=decimal_to_proto(tier.initial_margin_rate),
                maintenance_margin_rate=decimal_to_proto(tier.maintenance_margin_rate),
                maintenance_amount=decimal_to_proto(tier.maintenance_amount),
            )
            for tier in perpetual.margin_tiers
        ],
        funding_interval_seconds=perpetual.funding_interval_seconds,
        tiers_put=perpetual.tiers_put,
    )


def perpetual_from_proto(message: perpetuals_pb2.Perpetual) -> Perpetual:
    """Without tiers it has those that the contract says it has then. Whether the terms are sound is not looked at."""
    leverage_max = decimal_from_proto(message.leverage_max)
    tiers = tuple(
        MarginTier(
            notional_floor=decimal_from_proto(tier.notional_floor),
            initial_margin_rate=decimal_from_proto(tier.initial_margin_rate),
            maintenance_margin_rate=decimal_from_proto(tier.maintenance_margin_rate),
            maintenance_amount=decimal_from_proto(tier.maintenance_amount),
        )
        for tier in message.margin_tiers
    )
    return Perpetual(
        settle_asset=message.settle_asset,
        contract_size=decimal_from_proto(message.contract_size),
        leverage_max=leverage_max,
        margin_tiers=tiers or (usual_tiers(leverage_max) if leverage_max >= ONE else ()),
        funding_interval_seconds=message.funding_interval_seconds,
        tiers_put=message.tiers_put,
    )
