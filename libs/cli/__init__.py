"""`tradeloom …`: one file per command, gathered in `__main__.py`."""
