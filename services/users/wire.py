"""Translates between the users API and the users domain."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from tradeloom.execution.v1 import execution_pb2
from tradeloom.orders.v1 import orders_pb2
from tradeloom.users.v1 import users_pb2

from libs.mesh.wire import decimal_from_proto, decimal_to_proto, time_from_proto, timestamp
from services.users import places
from services.users.domain import (
    NOTIFICATIONS,
    PREFERENCE_PATHS,
    PROFILE_FIELDS,
    Check,
    Credential,
    CredentialState,
    Deletion,
    DeletionState,
    Export,
    ExportState,
    OrderType,
    Preferences,
    Problem,
    Profile,
    Progress,
    Purpose,
    Secrets,
    Step,
    Theme,
    etag_of,
    paths_of,
)

THEMES = {
    users_pb2.THEME_SYSTEM: Theme.SYSTEM,
    users_pb2.THEME_LIGHT: Theme.LIGHT,
    users_pb2.THEME_DARK: Theme.DARK,
}
ORDER_TYPES = {orders_pb2.ORDER_TYPE_MARKET: OrderType.MARKET, orders_pb2.ORDER_TYPE_LIMIT: OrderType.LIMIT}
STEPS = {users_pb2.OnboardingStep.Value(f"ONBOARDING_STEP_{step.name}"): step for step in Step}
PURPOSES = {users_pb2.LEASE_PURPOSE_TEST: Purpose.TEST, users_pb2.LEASE_PURPOSE_TRADE: Purpose.TRADE}
PROBLEMS = {
    execution_pb2.CREDENTIAL_PROBLEM_KEY_INVALID: Problem.KEY_INVALID,
    execution_pb2.CREDENTIAL_PROBLEM_SECRET_INVALID: Problem.SECRET_INVALID,
}
# The other way round: what a member of ours is called in the contract.
THEMES_OUT = {theme: value for value, theme in THEMES.items()}
ORDER_TYPES_OUT = {order_type: value for value, order_type in ORDER_TYPES.items()}
STEPS_OUT = {step: value for value, step in STEPS.items()}
DELETION_STATES = {state: users_pb2.DeletionState.Value(f"DELETION_STATE_{state.name}") for state in DeletionState}
EXPORT_STATES = {state: users_pb2.ExportState.Value(f"EXPORT_STATE_{state.name}") for state in ExportState}
CREDENTIAL_STATES = {
    state: users_pb2.BrokerCredentialState.Value(f"BROKER_CREDENTIAL_STATE_{state.name}") for state in CredentialState
}
PROBLEMS_OUT = {
    problem: users_pb2.BrokerCredentialProblem.Value(f"BROKER_CREDENTIAL_PROBLEM_{problem.name}") for problem in Problem
}


def profile_changes(request: users_pb2.UpdateProfileRequest) -> dict[str, Any]:
    """The new values by attribute. Raises UpdateMaskInvalid and PlaceUnknown."""
    values = {path: getattr(request.profile, path) for path in paths_of(request.update_mask.paths, PROFILE_FIELDS)}
    if "country" in values:
        places.check_country("profile.country", values["country"])
    return values


def profile_to_proto(profile: Profile) -> users_pb2.Profile:
    return users_pb2.Profile(
        user_id=str(profile.user_id),
        email=profile.email,
        full_name=profile.full_name,
        display_name=profile.display_name,
        country=profile.country,
        phone=profile.phone,
        update_time=timestamp(profile.update_time),
        etag=etag_of(profile.revision),
    )


def preference_changes(request: users_pb2.UpdatePreferencesRequest) -> tuple[list[str], dict[str, Any]]:
    """What changes, by its path, and the new values by attribute; what is unset is the usual one again."""
    paths = paths_of(request.update_mask.paths, PREFERENCE_PATHS)
    given, usual = request.preferences, Preferences()
    read: Mapping[str, Any] = {
        "locale": given.locale or usual.locale,
        "time_zone": given.time_zone or usual.time_zone,
        "base_currency": given.base_currency or usual.base_currency,
        "theme": THEMES.get(given.theme, usual.theme),
        "default_account_id": UUID(given.default_account_id) if given.default_account_id else None,
        "default_order_type": ORDER_TYPES.get(given.default_order_type, usual.default_order_type),
        "default_order_quantity": decimal_from_proto(given.default_order_quantity)
        if given.HasField("default_order_quantity")
        else None,
        "confirm_orders": given.confirm_orders,
        **{name: getattr(given.notifications, name) for name in NOTIFICATIONS},
    }
    values = {PREFERENCE_PATHS[path]: read[PREFERENCE_PATHS[path]] for path in paths}
    if "time_zone" in values:
        places.check_time_zone("preferences.time_zone", values["time_zone"])
    return paths, values


def preferences_to_proto(preferences: Preferences) -> users_pb2.Preferences:
    account_id = preferences.default_account_id
    return users_pb2.Preferences(
        locale=preferences.locale,
        time_zone=preferences.time_zone,
        base_currency=preferences.base_currency,
        theme=THEMES_OUT[preferences.theme],
        default_account_id=str(account_id) if account_id else "",
        default_order_type=ORDER_TYPES_OUT[preferences.default_order_type],
        default_order_quantity=decimal_to_proto(preferences.default_order_quantity),
        confirm_orders=preferences.confirm_orders,
        notifications=users_pb2.NotificationSwitches(**{name: getattr(preferences, name) for name in NOTIFICATIONS}),
        update_time=timestamp(preferences.update_time),
        etag=etag_of(preferences.revision),
    )


def onboarding_to_proto(steps: Sequence[Progress]) -> users_pb2.Onboarding:
    left = next((progress.step for progress in steps if progress.complete_time is None), None)
    return users_pb2.Onboarding(
        steps=[
            users_pb2.OnboardingProgress(
                step=STEPS_OUT[progress.step],
                complete_time=timestamp(progress.complete_time),
                proved=progress.proved,
            )
            for progress in steps
        ],
        next_step=STEPS_OUT[left] if left else users_pb2.ONBOARDING_STEP_UNSPECIFIED,
    )


def deletion_to_proto(deletion: Deletion) -> users_pb2.Deletion:
    return users_pb2.Deletion(
        state=DELETION_STATES[deletion.state],
        schedule_time=timestamp(deletion.schedule_time),
        purge_time=timestamp(deletion.purge_time),
        export_id=str(deletion.export_id),
    )


def export_to_proto(export: Export) -> users_pb2.PersonalDataExport:
    return users_pb2.PersonalDataExport(
        export_id=str(export.export_id),
        state=EXPORT_STATES[export.state],
        create_time=timestamp(export.create_time),
        ready_time=timestamp(export.ready_time),
        expire_time=timestamp(export.expire_time),
        part_count=export.part_count,
        size_bytes=export.size_bytes,
        digest=export.digest,
    )


def secrets_from_proto(request: users_pb2.PutBrokerCredentialRequest) -> Secrets:
    return Secrets(api_key=request.api_key, api_secret=request.api_secret, passphrase=request.passphrase)


def credential_to_proto(credential: Credential) -> users_pb2.BrokerCredential:
    return users_pb2.BrokerCredential(
        credential_id=str(credential.credential_id),
        account_id=str(credential.account_id),
        venue=credential.venue,
        label=credential.label,
        api_key_ending=credential.api_key_ending,
        state=CREDENTIAL_STATES[credential.state],
        check=check_to_proto(credential.check) if credential.check else None,
        create_time=timestamp(credential.create_time),
        update_time=timestamp(credential.update_time),
        revision=credential.revision,
    )


def credentials_to_proto(credentials: Iterable[Credential]) -> list[users_pb2.BrokerCredential]:
    return [credential_to_proto(credential) for credential in credentials]


def check_to_proto(check: Check) -> users_pb2.BrokerCredentialCheck:
    return users_pb2.BrokerCredentialCheck(
        can_read=check.can_read,
        can_trade=check.can_trade,
        can_withdraw=check.can_withdraw,
        problem=PROBLEMS_OUT[check.problem] if check.problem else users_pb2.BROKER_CREDENTIAL_PROBLEM_UNSPECIFIED,
        check_time=timestamp(check.check_time),
    )


def check_from_proto(response: execution_pb2.CheckBrokerCredentialResponse) -> Check:
    return Check(
        can_read=response.can_read,
        can_trade=response.can_trade,
        can_withdraw=response.can_withdraw,
        problem=PROBLEMS.get(response.problem),
        check_time=time_from_proto(response.check_time),
    )
