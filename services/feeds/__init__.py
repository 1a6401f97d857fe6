"""Brings market data in: from the simulated market, from recorded files, and from exchanges.

Stamps every tick with epoch and sequence and appends it to its instrument's stream, one replica per feed at a time; the
replicas divide the feeds evenly.
Bars of a venue's own record are put at marketdata, beside the streams.
"""
