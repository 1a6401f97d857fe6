"""The embedded stack: Postgres, Valkey, Envoy and the services, started from wheels and kept running.

A run reads top-down in `run.py`; what one server needs stands in its own file; `supervisor.py` knows none of them.
"""
