"""What all who verify access tokens hold to: the services, and the edge before them."""

ISSUER = "https://auth.tradeloom"
AUDIENCE = "tradeloom"
ALGORITHM = "EdDSA"
# A clock may run ahead of another by so much.
CLOCK_SKEW_SECONDS = 5
# How soon auth's keys are asked for again.
KEYS_REFRESH_SECONDS = 60.0
# How long auth publishes a key before it signs: so long that everybody has asked for it, though once in vain.
KEYS_LEAD_SECONDS = 2 * KEYS_REFRESH_SECONDS
