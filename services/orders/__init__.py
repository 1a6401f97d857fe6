"""Accepts orders, tells their story until they are done, and keeps what each account holds."""
