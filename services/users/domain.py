"""What a profile, preferences, onboarding, a deletion and a credential are, and what may happen to them. No I/O here."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, TypeVar
from uuid import UUID

from libs.errors import AlreadyExists, Conflict, Exhausted, Invalid, NotAllowed, NotFound, Unavailable

CREDENTIALS_MAX = 20
EXPORTS_MAX = 5
LEASE = timedelta(minutes=10)
ENDING_CHARACTERS = 4


class EtagOutdated(Conflict):
    reason = "ETAG_OUTDATED"


class UpdateMaskInvalid(Invalid):
    reason = "UPDATE_MASK_INVALID"


class PlaceUnknown(Invalid):
    reason = "PLACE_UNKNOWN"


class StepNotProved(NotAllowed):
    reason = "STEP_NOT_PROVED"


class UserDeleted(NotAllowed):
    reason = "USER_DELETED"


class ConfirmationMismatch(Invalid):
    reason = "CONFIRMATION_MISMATCH"


class ProfilePending(Unavailable):
    reason = "PROFILE_PENDING"


class DeletionNotScheduled(NotAllowed):
    reason = "DELETION_NOT_SCHEDULED"


class ExportNotFound(NotFound):
    reason = "EXPORT_NOT_FOUND"


class ExportPending(NotAllowed):
    reason = "EXPORT_PENDING"


class ExportPartNotFound(NotFound):
    reason = "EXPORT_PART_NOT_FOUND"


class TooManyExports(Exhausted):
    reason = "TOO_MANY_EXPORTS"


class AccountNotFound(NotFound):
    reason = "ACCOUNT_NOT_FOUND"


class VenueNeedsNoCredential(NotAllowed):
    reason = "VENUE_NEEDS_NO_CREDENTIAL"


class VenueNotSupported(NotAllowed):
    reason = "VENUE_NOT_SUPPORTED"


class CredentialNotFound(NotFound):
    reason = "CREDENTIAL_NOT_FOUND"


class LabelTaken(AlreadyExists):
    reason = "LABEL_TAKEN"


class AccountHasCredential(AlreadyExists):
    reason = "ACCOUNT_HAS_CREDENTIAL"


class TooManyCredentials(Exhausted):
    reason = "TOO_MANY_CREDENTIALS"


class CredentialChanged(Conflict):
    reason = "CREDENTIAL_CHANGED"


class CredentialNotUsable(NotAllowed):
    reason = "CREDENTIAL_NOT_USABLE"


class VenueUnavailable(Unavailable):
    reason = "VENUE_UNAVAILABLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    user_id: UUID
    email: str = ""
    full_name: str = ""
    display_name: str = ""
    country: str = ""
    phone: str = ""
    revision: int = 0
    """0 where nobody has changed anything yet."""
    update_time: datetime | None = None


PROFILE_FIELDS = ("full_name", "display_name", "country", "phone")


class Theme(Enum):
    SYSTEM = "system"
    LIGHT = "light"
    DARK = "dark"


class OrderType(Enum):
    MARKET = "market"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """Those of somebody who never changed one, unless said."""

    locale: str = "en"
    time_zone: str = "UTC"
    base_currency: str = "USD"
    theme: Theme = Theme.SYSTEM
    default_account_id: UUID | None = None
    default_order_type: OrderType = OrderType.MARKET
    default_order_quantity: Decimal | None = None
    confirm_orders: bool = True
    order_filled: bool = True
    order_rejected: bool = True
    alert_triggered: bool = True
    deployment_stopped: bool = True
    report_ready: bool = True
    product_news: bool = False
    revision: int = 0
    update_time: datetime | None = None


NOTIFICATIONS = (
    "order_filled",
    "order_rejected",
    "alert_triggered",
    "deployment_stopped",
    "report_ready",
    "product_news",
)
PREFERENCE_PATHS: Mapping[str, str] = {
    **{
        field.name: field.name
        for field in fields(Preferences)
        if field.name not in (*NOTIFICATIONS, "revision", "update_time")
    },
    **{f"notifications.{name}": name for name in NOTIFICATIONS},
}
"""The names of update_mask by attribute."""
MASK_PATHS_MAX = 50

Changing = TypeVar("Changing", Profile, Preferences)


def paths_of(mask: Sequence[str], known: Collection[str]) -> list[str]:
    """The fields that a mask names, each once; one that holds others stands for all of them."""
    if not mask or len(mask) > MASK_PATHS_MAX:
        raise UpdateMaskInvalid({"update_mask": f"must name from 1 to {MASK_PATHS_MAX} fields"})
    found: dict[str, None] = {}
    for path in mask:
        meant = [path] if path in known else [name for name in known if name.startswith(f"{path}.")]
        if not meant:
            raise UpdateMaskInvalid({"update_mask": f"names {path[:64]!r}, which cannot be changed"})
        found.update(dict.fromkeys(meant))
    return list(found)


def changed(thing: Changing, values: Mapping[str, Any], *, etag: str, now: datetime) -> Changing:
    """The thing with these values; raises EtagOutdated if it is not the one that the etag is of."""
    if etag and etag != etag_of(thing.revision):
        raise EtagOutdated("it was changed since; read it again", etag=etag_of(thing.revision))
    return replace(thing, **values, revision=thing.revision + 1, update_time=now)


def etag_of(revision: int) -> str:
    return f"r{revision}"


class Step(Enum):
    """In the order they are meant to be taken."""

    VERIFY_EMAIL = "verify_email"
    ENABLE_TOTP = "enable_totp"
    OPEN_ACCOUNT = "open_account"
    CONNECT_VENUE = "connect_venue"
    FIRST_TRADE = "first_trade"


# Nobody may say of themselves that their account is safe.
NEED_PROOF = frozenset({Step.VERIFY_EMAIL, Step.ENABLE_TOTP})


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    step: Step
    complete_time: datetime | None = None
    proved: bool = False


def onboarding(known: Iterable[Progress]) -> list[Progress]:
    """Every step, in order."""
    by_step = {progress.step: progress for progress in known}
    return [by_step.get(step, Progress(step=step)) for step in Step]


def check_tick(step: Step, known: Iterable[Progress]) -> None:
    """Raises StepNotProved if only a proof would complete it, and there is none."""
    if step in NEED_PROOF and step not in {progress.step for progress in known if progress.complete_time}:
        raise StepNotProved("the step is completed by what is done, not by saying so", step=step.value)


class DeletionState(Enum):
    SCHEDULED = "scheduled"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    user_id: UUID
    state: DeletionState
    schedule_time: datetime
    purge_time: datetime
    export_id: UUID
    export_is_last: bool = False
    """Whether it is made so late that nothing is deleted that it lacks, but for the days in which it is downloaded."""


# The last export begins so much earlier than it must be ready, so that it seldom puts the purge off.
EXPORT_AHEAD = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grace:
    """How long somebody may change their mind, and has at least to download what is kept of them."""

    period: timedelta
    download: timedelta

    @property
    def last_export_ahead(self) -> timedelta:
        """So long before the purge the last export begins."""
        return self.download + EXPORT_AHEAD


def purge_time_after_export(deletion: Deletion, ready_time: datetime, grace: Grace) -> datetime:
    """An export that was late moves the purge: there must be time to download it."""
    return max(deletion.purge_time, ready_time + grace.download)


class ExportState(Enum):
    PENDING = "pending"
    READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    export_id: UUID
    user_id: UUID
    state: ExportState
    create_time: datetime
    ready_time: datetime | None = None
    expire_time: datetime | None = None
    part_count: int = 0
    size_bytes: int = 0
    digest: bytes = b""


# Where orders can be sent to and a key is asked for; execution has a checker for each.
VENUES = frozenset({"BINANCE", "KRAKEN"})
SIMULATED_VENUES = frozenset({"PAPER", "SIM", "REPLAY"})


def check_venue(venue: str) -> None:
    if venue in SIMULATED_VENUES:
        raise VenueNeedsNoCredential("the venue is simulated and asks nobody for a key", venue=venue)
    if venue not in VENUES:
        raise VenueNotSupported(f"no orders can be sent to it; there are {', '.join(sorted(VENUES))}", venue=venue)


class CredentialState(Enum):
    UNTESTED = "untested"
    USABLE = "usable"
    REFUSED = "refused"


class Problem(Enum):
    """Why a key is of no use."""

    KEY_INVALID = "key_invalid"
    SECRET_INVALID = "secret_invalid"  # noqa: S105 (a name)
    CANNOT_READ = "cannot_read"
    CANNOT_TRADE = "cannot_trade"
    CAN_WITHDRAW = "can_withdraw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a venue said of a key."""

    can_read: bool
    can_trade: bool
    can_withdraw: bool
    problem: Problem | None
    check_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """A key itself; never shown in a trace or a log."""

    api_key: str
    api_secret: str
    passphrase: str

    def __repr__(self) -> str:
        return "Secrets(…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    credential_id: UUID
    user_id: UUID
    account_id: UUID
    venue: str
    label: str
    api_key_ending: str
    state: CredentialState
    create_time: datetime
    update_time: datetime
    revision: int
    check: Check | None = None


class Purpose(Enum):
    TEST = "test"
    TRADE = "trade"


def put(
    known: Sequence[Credential],
    *,
    credential_id: UUID | None,
    new_id: UUID,
    user_id: UUID,
    account_id: UUID,
    venue: str,
    label: str,
    api_key: str,
    now: datetime,
) -> Credential:
    """The credential with another key, untested; of one person, whose credentials are known, under their lock."""
    earlier = next((one for one in known if one.credential_id == credential_id), None)
    if credential_id is not None and earlier is None:
        raise no_credential(credential_id)
    for other in known:
        if other is earlier:
            continue
        if other.label == label:
            raise LabelTaken("another credential has this label", label=label, credential_id=other.credential_id)
        if other.account_id == account_id:
            raise AccountHasCredential(
                "the account has a credential; put the key in its place",
                account_id=account_id,
                credential_id=other.credential_id,
            )
    if earlier is None and len(known) >= CREDENTIALS_MAX:
        raise TooManyCredentials("there are as many credentials as allowed", credentials_max=CREDENTIALS_MAX)
    return Credential(
        credential_id=new_id,
        user_id=user_id,
        account_id=account_id,
        venue=venue,
        label=label,
        api_key_ending=api_key[-ENDING_CHARACTERS:],
        state=CredentialState.UNTESTED,
        create_time=earlier.create_time if earlier else now,
        update_time=now,
        revision=earlier.revision + 1 if earlier else 1,
    )


def problem_of(check: Check) -> Problem | None:
    """What keeps a key that the venue knows from being used."""
    if check.problem:
        return check.problem
    if check.can_withdraw:
        return Problem.CAN_WITHDRAW
    if not check.can_read:
        return Problem.CANNOT_READ
    return None if check.can_trade else Problem.CANNOT_TRADE


def judged(credential: Credential, check: Check, *, revision: int) -> Credential:
    """The credential after what the venue said of its key; raises CredentialChanged if it has another by now."""
    if credential.revision != revision:
        raise CredentialChanged("another key was put while the venue was asked; test again")
    problem = problem_of(check)
    state = CredentialState.REFUSED if problem else CredentialState.USABLE
    return replace(credential, state=state, check=replace(check, problem=problem))


def check_pause(credential: Credential, pause: timedelta, now: datetime) -> None:
    """Raises Exhausted if the venue was asked about the credential a moment ago."""
    if credential.check and (left := credential.check.check_time + pause - now) > timedelta(0):
        # A clock that was set back makes nobody wait for longer.
        raise Exhausted(
            "the credential was tested a moment ago",
            retry_after_seconds=min(left, pause).total_seconds(),
            limit="credential check",
        )


def check_lease(credential: Credential, purpose: Purpose) -> None:
    if purpose is Purpose.TRADE and credential.state is not CredentialState.USABLE:
        raise CredentialNotUsable(
            "only a credential that was tested and found usable trades",
            credential_id=credential.credential_id,
            state=credential.state.value,
        )


def no_credential(credential_id: UUID) -> CredentialNotFound:
    return CredentialNotFound("no such credential", credential_id=credential_id)
