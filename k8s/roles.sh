#!/bin/sh
# Run once, when Postgres makes its cluster: the owner, its database, and two roles for each service.
# $ROLES_FOLDER has a file for each role, named like it, with its password.
set -eu

sql() { PASSWORD_FILE="$1" psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username postgres --dbname postgres; }

sql "$ROLES_FOLDER/tradeloom" <<'SQL'
\set password `cat "$PASSWORD_FILE"`
CREATE ROLE tradeloom LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE trading OWNER tradeloom;
SQL

for file in "$ROLES_FOLDER"/*_rpc "$ROLES_FOLDER"/*_worker; do
  sql "$file" <<'SQL'
\set password `cat "$PASSWORD_FILE"`
\set role `basename "$PASSWORD_FILE"`
-- Made as the owner, who therefore may change them when it migrates.
SET ROLE tradeloom;
CREATE ROLE :"role" LOGIN PASSWORD :'password';
SQL
done
