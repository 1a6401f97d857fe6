import pytest

from libs.stack.errors import StackError
from libs.stack.urls import as_user, plain_database_url, without_secrets


@pytest.mark.parametrize(
    "spelling",
    ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg2", "postgresql+psycopg", "postgresql+pg8000"],
)
def test_every_spelling_of_sqlalchemy_means_the_same(spelling):
    assert plain_database_url(f"{spelling}://u:p%40ss@db:5433/trading") == "postgresql://u:p%40ss@db:5433/trading"


def test_options_of_the_driver_are_taken_out_and_those_of_the_server_kept():
    url = "postgresql+asyncpg://u@db/trading?ssl=require&prepared_statement_cache_size=0&application_name=x"
    assert plain_database_url(url) == "postgresql://u@db/trading?sslmode=require&application_name=x"


def test_another_kind_of_database_is_refused():
    with pytest.raises(StackError, match="mysql"):
        plain_database_url("mysql://u@db/trading")


def test_another_user_goes_to_the_same_place():
    url = as_user("postgresql://owner:secret@db:5433/trading?sslmode=require", "orders_rpc", "a/b")
    assert url == "postgresql://orders_rpc:a%2Fb@db:5433/trading?sslmode=require"
    assert as_user("postgresql:///trading?host=%2Frun", "u", "p") == "postgresql://u:p@/trading?host=%2Frun"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://owner:secret@db:5433/trading?sslmode=require&password=secret", "postgresql://db:5433/trading"),
        ("postgresql:///trading?host=%2Frun&password=secret", "postgresql:///trading?host=%2Frun"),
        ("redis://:secret@cache:6380/2", "redis://cache:6380/2"),
        ("unix://u:secret@/run/redis.sock?password=secret", "unix:///run/redis.sock"),
    ],
)
def test_a_place_is_shown_without_its_password(url, shown):
    assert without_secrets(url) == shown
