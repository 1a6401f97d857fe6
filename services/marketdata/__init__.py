"""Knows what can be traded and what the market does and did. Keeps ticks and bars as they come, and passes ticks on live."""
