"""Carries live accounts: sends their orders to venues beyond the network once, and follows what becomes of them there."""
