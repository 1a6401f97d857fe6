"""Knows what each person's plan allows, what of it is used, and how it is paid: at Stripe, or by an administrator's word."""
