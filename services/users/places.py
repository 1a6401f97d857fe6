"""The time zones and countries there are, the same on every machine: those of the package tzdata."""

import functools
from importlib import resources

from services.users.domain import PlaceUnknown


@functools.cache
def time_zones() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text("utf-8").split())


@functools.cache
def countries() -> frozenset[str]:
    """Of ISO 3166-1, in two letters."""
    lines = resources.files("tzdata").joinpath("zoneinfo", "iso3166.tab").read_text("utf-8").splitlines()
    return frozenset(line.split("\t")[0] for line in lines if line and not line.startswith("#"))


def check_time_zone(field: str, name: str) -> None:
    if name not in time_zones():
        raise PlaceUnknown({field: "is no time zone of the IANA database"})


def check_country(field: str, code: str) -> None:
    if code and code not in countries():
        raise PlaceUnknown({field: "is no country of ISO 3166-1"})
