"""What a browser is told about the files: what may run, who may frame them, how long they keep."""

NONCE_PLACEHOLDER = "__CSP_NONCE__"

FOREVER = "public, max-age=31536000, immutable"
AN_HOUR = "public, max-age=3600"
ASK_EVERY_TIME = "no-cache"

EVERYWHERE = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
"""Unless an answer says otherwise: nothing runs, nothing is kept."""


def page(nonce: str) -> str:
    """Files of this origin only, nothing inline; style elements that the component library makes carry the nonce.

    Images may be data as well: the second factor's is drawn by auth and never was a file. As an image it runs nothing.
    """
    return policy(
        script="'self'",
        style=f"'self' 'nonce-{nonce}'",
        image="'self' data:",
    )


def policy(*, script: str, style: str, image: str) -> str:
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {script}",
            f"style-src {style}",
            f"img-src {image}",
            "font-src 'self'",
            "connect-src 'self'",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        ]
    )


# Swagger UI writes style attributes; it runs no script that is not a file of this origin.
DOCS = policy(script="'self'", style="'self' 'unsafe-inline'", image="'self' data:")
