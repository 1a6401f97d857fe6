"""An authenticator app of our own, written from RFC 4226 and RFC 6238 alone: it shares no code with the service."""

import base64
import hashlib
import hmac
import struct
import time
from urllib.parse import parse_qs, unquote, urlsplit


def hotp(key: bytes, counter: int, digits: int = 6, algorithm: str = "sha1") -> str:
    """RFC 4226, section 5.3; RFC 6238 lets other hashes take its place."""
    mac = hmac.new(key, struct.pack(">Q", counter), getattr(hashlib, algorithm)).digest()
    offset = mac[-1] & 0x0F
    number = struct.unpack(">I", mac[offset : offset + 4])[0] & 0x7FFFFFFF
    return str(number % 10**digits).zfill(digits)


class Authenticator:
    """What scans the URI and shows codes."""

    def __init__(self, otpauth_uri: str) -> None:
        parts = urlsplit(otpauth_uri)
        assert (parts.scheme, parts.netloc) == ("otpauth", "totp")
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.label = unquote(parts.path[1:])
        self.issuer = asked["issuer"]
        self.digits, self.period = int(asked.get("digits", 6)), int(asked.get("period", 30))
        self.algorithm = asked.get("algorithm", "SHA1").lower()
        secret = asked["secret"]
        self._key = base64.b32decode(secret + "=" * (-len(secret) % 8))
        self._last = 0

    def code(self, *, steps: int = 0) -> str:
        """What it shows now, or so many steps later."""
        return self._code_of(self._step() + steps)

    def unused_code(self) -> str:
        """One that was not given out here before: the next step's if now's was. Good though a step passes on its way."""
        self._last = max(self._step(), self._last + 1)
        assert self._last <= self._step() + 1, "no more for now: wait for the next step, or use a recovery code"
        return self._code_of(self._last)

    def _step(self) -> int:
        return int(time.time()) // self.period

    def _code_of(self, step: int) -> str:
        return hotp(self._key, step, self.digits, self.algorithm)
