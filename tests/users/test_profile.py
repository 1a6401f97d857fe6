"""Profiles and preferences: typed, changed field by field, and never lost to another change."""

import asyncio

import pytest
from redis.asyncio import Redis
from tradeloom.orders.v1 import orders_pb2
from tradeloom.users.v1 import events_pb2, users_pb2

from libs.ids import uuid7
from tests.orders.stand import decimal, reason, refusal
from tests.users.stand import Stand, Told


async def test_what_auth_tells_of_a_new_person_makes_the_profile(users: Stand, redis: Redis):
    ada = users.person()
    await Told(redis).register(ada, "ada@example.com", "Ada Lovelace")
    profile = await ada.profile()
    assert (profile.user_id, profile.email, profile.full_name) == (str(ada.user_id), "ada@example.com", "Ada Lovelace")


async def test_somebody_of_whom_auth_has_not_told_yet_has_an_empty_profile_and_loses_nothing(
    users: Stand, redis: Redis
):
    ada = users.person()
    before = await ada.profile()
    assert (before.user_id, before.email, before.etag) == (str(ada.user_id), "", "r0")
    assert (await ada.preferences()).time_zone == "UTC"
    assert len((await ada.onboarding()).steps) == 5
    assert await users.select("SELECT * FROM people") == [], "looking writes nothing"
    await ada.change_profile(display_name="Countess", full_name="Augusta Ada King")
    await Told(redis).register(ada, "ada@example.com", "Ada")
    profile = await ada.profile()
    assert (profile.email, profile.full_name, profile.display_name) == (
        "ada@example.com",
        "Augusta Ada King",
        "Countess",
    )


async def test_only_what_the_mask_names_changes(users: Stand):
    ada = users.person()
    await ada.change_profile(display_name="Ada", country="GB", phone="+442071234567")
    changed = await ada.change_profile("country", country="DE", display_name="not named")
    assert (changed.display_name, changed.country, changed.phone) == ("Ada", "DE", "+442071234567")
    cleared = await ada.change_profile("phone")
    assert (cleared.phone, cleared.country) == ("", "DE")
    assert await ada.profile() == cleared


async def test_a_change_that_is_meant_for_an_older_profile_is_refused_and_changes_nothing(users: Stand):
    ada = users.person()
    first = await ada.change_profile(display_name="Ada")
    second = await ada.change_profile(display_name="Countess", etag=first.etag)
    refused = await refusal(ada.change_profile(display_name="lost", etag=first.etag))
    assert (refused.code, refused.reason, refused.metadata) == ("ABORTED", "ETAG_OUTDATED", {"etag": second.etag})
    assert await ada.profile() == second


async def test_of_changes_at_once_that_are_meant_for_the_same_profile_one_wins(users: Stand):
    ada = users.person()
    etag = (await ada.change_profile(display_name="Ada")).etag
    outcomes = await asyncio.gather(
        *(ada.change_profile(display_name=f"name {number}", etag=etag) for number in range(8)), return_exceptions=True
    )
    winners = [each for each in outcomes if isinstance(each, users_pb2.Profile)]
    assert len(winners) == 1
    assert await ada.profile() == winners[0]
    assert len(await users.told(ada.user_id)) == 2


async def test_repeating_a_request_returns_the_first_answer_and_tells_once(users: Stand):
    ada = users.person()
    first = await ada.change_profile(display_name="Ada", request_id="same")
    await ada.change_profile(display_name="Countess")
    assert await ada.change_profile(display_name="Ada", request_id="same") == first
    assert (await ada.profile()).display_name == "Countess"
    assert await reason(ada.change_profile(display_name="other", request_id="same")) == "REQUEST_ID_REUSED"
    assert [list(told.fields) for told in await users.told(ada.user_id)] == [["display_name"], ["display_name"]]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"country": "ZZ"}, "profile.country"),
        ({"country": "de"}, "profile.country"),
        ({"phone": "030 123456"}, "profile.phone"),
        ({"full_name": "x" * 201}, "profile.full_name"),
    ],
)
async def test_a_bad_profile_is_refused_by_field_and_changes_nothing(users: Stand, values: dict, field: str):
    ada = users.person()
    before = await ada.change_profile(country="GB", phone="+442071234567", full_name="Ada")
    refused = await refusal(ada.change_profile(**values))
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", [field])
    assert await ada.profile() == before


@pytest.mark.parametrize("path", ["email", "user_id", "etag", "nothing", "", "full_name.first", "full_nam"])
async def test_a_mask_that_names_what_cannot_be_changed_is_refused(users: Stand, path: str):
    ada = users.person()
    assert await reason(ada.change_profile(path, email="eve@example.com")) == "UPDATE_MASK_INVALID"
    assert await users.select("SELECT * FROM profiles") == []


async def test_a_change_without_a_mask_is_refused(users: Stand):
    ada = users.person()
    request = users_pb2.UpdateProfileRequest(request_id="x", profile=users_pb2.Profile(display_name="Ada"))
    assert (await refusal(ada.ask(ada.api.UpdateProfile, request))).fields == ["update_mask"]
    request.update_mask.SetInParent()
    assert await reason(ada.ask(ada.api.UpdateProfile, request)) == "UPDATE_MASK_INVALID"


async def test_preferences_are_the_usual_ones_until_they_are_changed_one_by_one(users: Stand):
    ada = users.person()
    usual = await ada.preferences()
    assert (usual.locale, usual.base_currency, usual.theme) == ("en", "USD", users_pb2.THEME_SYSTEM)
    assert usual.default_order_type == orders_pb2.ORDER_TYPE_MARKET
    assert usual.confirm_orders
    assert usual.notifications.order_filled
    assert not usual.notifications.product_news
    changed = await ada.change_preferences(
        theme=users_pb2.THEME_DARK,
        time_zone="Europe/Berlin",
        default_order_type=orders_pb2.ORDER_TYPE_LIMIT,
        default_order_quantity=decimal("0.250"),
    )
    assert (changed.theme, changed.time_zone, changed.locale) == (users_pb2.THEME_DARK, "Europe/Berlin", "en")
    assert (changed.default_order_type, changed.default_order_quantity.value) == (orders_pb2.ORDER_TYPE_LIMIT, "0.25")
    assert changed.notifications == usual.notifications
    assert await ada.preferences() == changed


async def test_one_switch_changes_alone_and_all_of_them_together(users: Stand):
    ada = users.person()
    one = await ada.change_preferences("notifications.order_filled")
    assert not one.notifications.order_filled
    assert one.notifications.order_rejected
    switches = users_pb2.NotificationSwitches(product_news=True)
    all_of_them = await ada.change_preferences("notifications", notifications=switches)
    assert all_of_them.notifications == switches
    [first, second] = await users.told(ada.user_id)
    assert first == events_pb2.PreferencesUpdated(fields=["notifications.order_filled"])
    assert len(second.fields) == 6


async def test_what_is_emptied_becomes_the_usual_one_again(users: Stand):
    ada = users.person()
    await ada.change_preferences(
        locale="pt-BR", base_currency="EUR", theme=users_pb2.THEME_DARK, default_order_quantity=decimal(1)
    )
    emptied = await ada.change_preferences("locale", "base_currency", "theme", "default_order_quantity")
    assert (emptied.locale, emptied.base_currency, emptied.theme) == ("en", "USD", users_pb2.THEME_SYSTEM)
    assert not emptied.HasField("default_order_quantity")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"time_zone": "Mars/Olympus"}, "preferences.time_zone"),
        ({"time_zone": "../etc/passwd"}, "preferences.time_zone"),
        ({"locale": "english"}, "preferences.locale"),
        ({"base_currency": "us dollars"}, "preferences.base_currency"),
        ({"theme": 9}, "preferences.theme"),
        ({"default_order_quantity": decimal("-1")}, "preferences.default_order_quantity"),
        ({"default_account_id": "mine"}, "preferences.default_account_id"),
    ],
)
async def test_a_bad_preference_is_refused_by_field_and_changes_nothing(users: Stand, values: dict, field: str):
    ada = users.person()
    before = await ada.change_preferences(time_zone="Asia/Tokyo")
    refused = await refusal(ada.change_preferences(**values))
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", [field])
    assert await ada.preferences() == before


async def test_the_first_account_shown_must_be_ones_own(users: Stand):
    ada, eve = users.person(), users.person()
    account_id = ada.opens_account()
    assert (await ada.change_preferences(default_account_id=account_id)).default_account_id == account_id
    refused = await refusal(eve.change_preferences(default_account_id=account_id))
    assert (refused.code, refused.reason) == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")
    assert await reason(eve.change_preferences(default_account_id=str(uuid7()))) == "ACCOUNT_NOT_FOUND"
    users.around.away.add("GetPortfolio")
    assert (await refusal(eve.change_preferences(default_account_id=account_id))).code == "UNAVAILABLE"
    assert (await eve.change_preferences("default_account_id", theme=users_pb2.THEME_DARK)).default_account_id == ""


async def test_preferences_have_an_etag_of_their_own(users: Stand):
    ada = users.person()
    await ada.change_profile(display_name="Ada")
    first = await ada.change_preferences(theme=users_pb2.THEME_DARK, etag="r0")
    assert await reason(ada.change_preferences(theme=users_pb2.THEME_LIGHT, etag="r0")) == "ETAG_OUTDATED"
    assert await ada.preferences() == first


@pytest.mark.parametrize("bound", [{}, {"accounts": [str(uuid7())]}])
async def test_a_program_with_an_api_key_sees_nothing_of_the_person(users: Stand, bound: dict[str, list[str]]):
    """It is for trading, and perhaps for one account: its maker expects it to tell nobody their telephone number."""
    ada = users.person(scopes=["read", "trade"], **bound)
    for doing in (
        ada.profile(),
        ada.preferences(),
        ada.onboarding(),
        ada.ask(ada.api.GetDeletion, users_pb2.GetDeletionRequest()),
        ada.change_profile(display_name="x"),
        ada.change_preferences(locale="de"),
    ):
        refused = await refusal(doing)
        assert (refused.code, refused.metadata) == ("PERMISSION_DENIED", {"needs": "scope:account"})
