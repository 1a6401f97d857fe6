"""Speaks the orders API: each method reads the request, calls one use case, writes the response. A file for each service."""

from services.orders.servicer.live import LiveTradingServicer
from services.orders.servicer.margin import MarginServicer
from services.orders.servicer.orders import Intentions, OrderServicer
from services.orders.servicer.parents import ParentOrderServicer
from services.orders.servicer.portfolio import PortfolioServicer
from services.orders.servicer.risk import RiskServicer

__all__ = [
    "Intentions",
    "LiveTradingServicer",
    "MarginServicer",
    "OrderServicer",
    "ParentOrderServicer",
    "PortfolioServicer",
    "RiskServicer",
]
