"""How a market would have filled an order: one model for paper trading, backtest and replay.

Everything here is pure: whole ticks and lots in, fills out, no clock and no chance. `market.py` holds the rules.
"""
