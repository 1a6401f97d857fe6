"""What the catalogue of Postgres says of every service's tables, and a row of somebody's in each of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

import asyncpg

Table = tuple[str, str]
"""The schema, which is the service's word, and the name."""

RELATIONS = """
    SELECT nspname AS word, relname AS name, relrowsecurity AND relforcerowsecurity AS is_secured,
      pg_get_userbyid(relowner) AS owner, relkind
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE to_regrole(nspname || '_rpc') IS NOT NULL AND relkind NOT IN ('i', 'I', 'S', 't', 'c') AND NOT relispartition
    ORDER BY 1, 2
    """
COLUMNS = """
    SELECT attname AS name, format_type(atttypid, NULL) AS type, attnotnull AS is_needed,
      atthasdef OR attidentity <> '' OR attgenerated <> '' AS has_default
    FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
    """
CHOICES = """
    SELECT pg_get_constraintdef(oid) AS text FROM pg_constraint WHERE conrelid = $1::text::regclass AND contype = 'c'
    """
PARENTS = """
    SELECT attname AS name, split_part(confrelid::regclass::text, '.', 1) AS word,
      split_part(confrelid::regclass::text, '.', 2) AS parent,
      (SELECT attname FROM pg_attribute WHERE attrelid = confrelid AND attnum = confkey[1]) AS parent_column
    FROM pg_constraint JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
    WHERE conrelid = $1::text::regclass AND contype = 'f'
    """
CHOICE = re.compile(r"\(\(?(\w+) = ANY \(ARRAY\['([^']+)'")
VALUES = {
    "smallint": "1",
    "integer": "1",
    "bigint": "1",
    "numeric": "1",
    "double precision": "1",
    "boolean": "true",
    "jsonb": "{}",
    "timestamp with time zone": "tomorrow",
    "inet": "192.0.2.1",
}
"""By type, as text. Times lie ahead, so that no row is old enough to be purged."""

MADE: Mapping[Table, Mapping[str, str]] = {("users", "user_broker_credentials"): {"api_key_ending": "four"}}
"""What cannot be told from type, default, choice and parent: by table the columns with their values, as text."""


@dataclass(frozen=True)
class Person:
    user_id: UUID
    filled: dict[Table, dict[str, Any]] = field(default_factory=dict)
    """The columns that were written of each of this person's rows."""

    def value(self, column: str, kind: str) -> str:
        """Of this person alone, and the same wherever a column is called so."""
        if kind == "uuid":
            return str(uuid5(self.user_id, column))
        if kind.endswith("[]"):
            return "{}"
        if kind == "bytea":
            return "\\x" + uuid5(self.user_id, column).hex
        if kind in ("text", "character varying"):
            return f"{column} of {self.user_id}"
        return VALUES[kind]


async def relations(superuser: asyncpg.Connection) -> list[asyncpg.Record]:
    """Everything that holds rows, in the schema of any service."""
    return await superuser.fetch(RELATIONS)


async def columns(superuser: asyncpg.Connection, table: Table) -> dict[str, asyncpg.Record]:
    return {row["name"]: row for row in await superuser.fetch(COLUMNS, ".".join(table))}


async def fill(superuser: asyncpg.Connection, table: Table, person: Person) -> dict[str, Any]:
    """Writes a row of this person's, and first those that it refers to; what was written."""
    if table in person.filled:
        return person.filled[table]
    name, found = ".".join(table), await columns(superuser, table)
    values: dict[str, str] = {}
    for column in found.values():
        if column["name"] == "user_id":
            values["user_id"] = str(person.user_id)
        elif column["is_needed"] and not column["has_default"]:
            values[column["name"]] = person.value(column["name"], column["type"])
    for check in await superuser.fetch(CHOICES, name):
        if (choice := CHOICE.search(check["text"])) and choice[1] in values:
            values[choice[1]] = choice[2]
    for parent in await superuser.fetch(PARENTS, name):
        if parent["name"] in values:
            above = await fill(superuser, (parent["word"], parent["parent"]), person)
            values[parent["name"]] = above[parent["parent_column"]]
    values |= MADE.get(table, {})
    given = ", ".join(f"${number}::text::{found[column]['type']}" for number, column in enumerate(values, 1))
    await superuser.execute(f"INSERT INTO {name} ({', '.join(values)}) VALUES ({given})", *values.values())
    person.filled[table] = values
    return values
