"""The services: `python -m services.<word>` starts one."""

from libs import loading

loading.begin()
