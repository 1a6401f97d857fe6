"""Carries orders to venues, once each, and brings back what became of them; the paper venue is one of them."""
