"""How a secret made for development is known, so that a process told it is in production can refuse it."""

from urllib.parse import parse_qs, unquote, urlsplit

DEVELOPMENT_MARK = "devl"
"""Valid in base64, in URLs and in SQL; 232 random bits of a 256-bit key remain."""

WELL_KNOWN = frozenset(
    {"trading", "tradeloom", "postgres", "admin", "password", "secret", "changeme", "change-me", "dev"}
)


def is_development_secret(value: str) -> bool:
    """Whether the value is, or as a URL carries, a secret made for development or known to everybody."""
    return any(
        secret.startswith(DEVELOPMENT_MARK) or secret.lower() in WELL_KNOWN
        for secret in (passwords_of(value) if "://" in value else [value])
    )


def passwords_of(url: str) -> list[str]:
    """The password before the host, and those among the options, where libpq and redis-py look too."""
    try:
        parts = urlsplit(url)
    except ValueError:
        # Nobody can connect with it, and what is wrong with it would be told with its text.
        return []
    return [unquote(parts.password or ""), *parse_qs(parts.query).get("password", [])]
