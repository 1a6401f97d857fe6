"""Database URLs in the spellings of SQLAlchemy, made into the one that libpq and asyncpg read."""

from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from libs.stack.errors import StackError

DIALECTS = frozenset({"postgres", "postgresql"})
DRIVER_OPTIONS = frozenset({"prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback"})
"""SQLAlchemy takes these out for itself; a server would refuse them."""


def plain_database_url(url: str) -> str:
    """`postgresql+asyncpg://…`, `postgresql+psycopg2://…`, `postgres://…` become `postgresql://…`."""
    parts = urlsplit(url)
    if parts.scheme.partition("+")[0] not in DIALECTS:
        raise StackError(f"DATABASE_URL must begin with postgresql://, not {parts.scheme}://")
    options = [
        ("sslmode" if name == "ssl" else name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if name not in DRIVER_OPTIONS
    ]
    return urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(options), ""))


def without_secrets(url: str) -> str:
    """The same place, to be shown: without user, password and options but for the host."""
    parts = urlsplit(url)
    host = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name == "host"])
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" + (f"?{host}" if host else "")


def as_user(url: str, user: str, password: str) -> str:
    """The same server and database, for somebody else."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{place}"))
