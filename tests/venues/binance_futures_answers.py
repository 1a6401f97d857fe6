"""How the offline Binance refuses what is asked of perpetual futures, in Binance's codes and words."""

from typing import Any

from tests.venues import binance_answers

WEIGHT_PER_MINUTE = 2_400
ORDERS_PER_10_SECONDS = 300
ORDERS_PER_MINUTE = 1_200

ERRORS = {
    **binance_answers.ERRORS,
    -1003: (
        429,
        "Too many requests; current limit is {} requests per minute. Please use the websocket for live updates.",
    ),
    -1015: (429, "Too many new orders; current limit is {} orders per {}."),
    -1111: (400, "Precision is over the maximum defined for this asset."),
    -1125: (400, "This listenKey does not exist."),
    -2011: (400, "Unknown order sent."),
    -2019: (400, "Margin is insufficient."),
    -2021: (400, "Order would immediately trigger."),
    -2022: (400, "ReduceOnly Order is rejected."),
    -4003: (400, "Quantity less than or equal to zero."),
    -4005: (400, "Quantity greater than max quantity."),
    -4014: (400, "Price not increased by tick size."),
    -4016: (400, "Limit price can't be higher than {}."),
    -4024: (400, "Limit price can't be lower than {}."),
    -4028: (400, "Leverage {} is not valid"),
    -4046: (400, "No need to change margin type."),
    -4048: (400, "Margin type cannot be changed if there exists position."),
    -4059: (400, "No need to change position side."),
    -4061: (400, "Order's position side does not match user's setting."),
    -4067: (400, "Position side cannot be changed if there exists open orders."),
    -4116: (400, "ClientOrderId is duplicated"),
    -4120: (400, "Order type not supported for this endpoint. Please use the Algo Order API endpoints instead."),
    -4131: (400, "The counterparty's best price does not meet the PERCENT_PRICE filter limit."),
    -4164: (400, "Order's notional must be no smaller than {} (unless you choose reduce only)."),
    -5021: (400, "Due to the order could not be filled immediately, the FOK order has been rejected."),
    -5022: (400, "Due to the order could not be executed as maker, the Post Only order will be rejected."),
    -5025: (400, "Only limit order is supported."),
    -5027: (400, "No need to modify the order."),
}


class Refused(binance_answers.Refused):
    """A code of one number is not always one word at both of Binance's markets."""

    def __init__(self, code: int, *about: object, headers: dict[str, str] | None = None) -> None:
        status, message = ERRORS[code]
        self.status, self.headers = status, headers or {}
        self.body: dict[str, Any] = {"code": code, "msg": message.format(*about)}
