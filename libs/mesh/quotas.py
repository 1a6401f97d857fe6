"""How much of a thing the caller's plan allows; asked where the thing is made, under the lock that counts it."""

from libs.errors import Exhausted
from libs.mesh import identity


class QuotaExceeded(Exhausted):
    """The plan allows no more of this."""

    reason = "QUOTA_EXCEEDED"


def check_quota(quota: str, used: int) -> None:
    """Raises QuotaExceeded unless the plan allows one more than are used; what a plan does not name it does not allow."""
    limit = identity.current().quotas.get(quota, 0)
    if used >= limit:
        raise QuotaExceeded(f"the plan allows {limit} of {quota}", quota=quota, limit=limit, used=used)
