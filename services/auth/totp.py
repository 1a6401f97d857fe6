"""The second factor: RFC 6238 as every authenticator app has it (SHA-1, six digits, thirty seconds), and its image."""

import base64
import hmac
import io
import secrets
from datetime import datetime

import segno
from pyotp import random_base32
from pyotp.totp import TOTP

ISSUER = "Tradeloom"
SECRET_CHARACTERS = 32  # 160 bits, as RFC 4226 recommends
STEP_SECONDS = 30
STEPS_EITHER_SIDE = 1
"""A code of the step before or after is taken too: clocks differ, and people type slowly."""
RECOVERY_BYTES = 15
RECOVERY_GROUP_CHARACTERS = 6


def new_secret() -> str:
    return random_base32(SECRET_CHARACTERS)


def otpauth_uri(secret: str, email: str) -> str:
    return TOTP(secret).provisioning_uri(name=email, issuer_name=ISSUER)


def qr_svg(uri: str) -> str:
    """A whole SVG document that shows the URI."""
    image = io.BytesIO()
    segno.make(uri, error="m", micro=False).save(image, kind="svg", scale=5, border=4, light="#fff", dark="#000")
    return image.getvalue().decode()


def step_of(secret: str, code: str, now: datetime, *, after: int) -> int | None:
    """The time step that this code belongs to, if it is near now and later than the last that was used."""
    current = int(now.timestamp()) // STEP_SECONDS
    totp, found = TOTP(secret), None
    for step in range(current - STEPS_EITHER_SIDE, current + STEPS_EITHER_SIDE + 1):
        # All are compared, in a time that tells nothing.
        if hmac.compare_digest(totp.generate_otp(step).encode(), code.strip().encode()) and step > after:
            found = step
    return found


def new_recovery_code() -> str:
    """120 random bits in base32, such as "abcdef-ghijkl-mnopqr-stuvwx": to be typed once from a sheet of paper."""
    text = base64.b32encode(secrets.token_bytes(RECOVERY_BYTES)).decode().lower()
    size = RECOVERY_GROUP_CHARACTERS
    return "-".join(text[start : start + size] for start in range(0, len(text), size))


def plain_recovery_code(typed: str) -> str:
    """What is hashed, however it was typed."""
    return "".join(typed.split()).replace("-", "").lower()
