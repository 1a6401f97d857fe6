"""Keeps what people say of themselves, how they like things and the keys they have at venues; and lets them leave."""
