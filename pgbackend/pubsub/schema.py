"""What the migration does in the database: make the table, or complete django-pgpubsub's."""

from __future__ import annotations

from typing import Any

TABLE = "pgpubsub_notification"

# django-pgpubsub's trigger and its foreign key to django_migrations go: that key would refuse
# `migrate` to take a migration back.
TAKE_OVER = f"""
DROP TRIGGER IF EXISTS pgtrigger_pgpubsub_notification_set_db_version_ac4cd ON {TABLE};
DROP FUNCTION IF EXISTS pgtrigger_pgpubsub_notification_set_db_version_ac4cd();
ALTER TABLE {TABLE} DROP CONSTRAINT IF EXISTS pgpubsub_notification_db_version_fk;
ALTER TABLE {TABLE} ADD COLUMN IF NOT EXISTS created_at timestamptz;
ALTER TABLE {TABLE} ADD COLUMN IF NOT EXISTS db_version integer;
ALTER TABLE {TABLE} ALTER COLUMN created_at SET DEFAULT statement_timestamp();
UPDATE {TABLE} SET created_at = statement_timestamp() WHERE created_at IS NULL;
UPDATE {TABLE} SET payload = (payload #>> '{{}}')::jsonb WHERE jsonb_typeof(payload) = 'string';
"""

# Of applications whose migrations had made `id` by the setting of the project it may be either.
WIDER_ID = f"""
DO $$
DECLARE sequence text := pg_get_serial_sequence('{TABLE}', 'id');
BEGIN
    ALTER TABLE {TABLE} ALTER COLUMN id TYPE bigint;
    IF sequence IS NOT NULL THEN
        EXECUTE format('ALTER SEQUENCE %s AS bigint', sequence);
    END IF;
END $$
"""

# The trigger looks into django_migrations only for rows that triggers of tables have written, and
# if it is there: rows may be restored with a search path that is empty.
# A payload that is one JSON string is what the triggers of django-pgpubsub before 1.1 wrote.
DB_VERSION = f"""
CREATE OR REPLACE FUNCTION pgpubsub_notification_db_version() RETURNS trigger AS $$
BEGIN
    IF jsonb_typeof(NEW.payload) = 'string' AND NEW.payload #>> '{{}}' LIKE '{{%' THEN
        NEW.payload := (NEW.payload #>> '{{}}')::jsonb;
    END IF;
    IF to_regclass('django_migrations') IS NOT NULL THEN
        NEW.db_version := (SELECT max(id) FROM django_migrations WHERE app = NEW.payload ->> 'app');
    END IF;
    RETURN NEW;
END;
$$ LANGUAGE plpgsql;
DROP TRIGGER IF EXISTS pgpubsub_notification_db_version ON {TABLE};
CREATE TRIGGER pgpubsub_notification_db_version BEFORE INSERT ON {TABLE} FOR EACH ROW
WHEN (NEW.db_version IS NULL AND (NEW.payload ? 'app' OR jsonb_typeof(NEW.payload) = 'string'))
EXECUTE FUNCTION pgpubsub_notification_db_version();
"""

HASH = "'sha256:' || encode(sha256(convert_to({}, getdatabaseencoding())), 'hex')"

# An index takes entries of up to some 2,700 bytes: a longer key would make the sender's own INSERT
# fail. Of the texts of a database without an encoding not all can be read, but all hashes.
ORDER_KEY = f"""
CREATE OR REPLACE FUNCTION pgpubsub_notification_order_key() RETURNS trigger AS $$
BEGIN
    NEW.order_key := {HASH.format("NEW.order_key")};
    RETURN NEW;
END;
$$ LANGUAGE plpgsql;
DROP TRIGGER IF EXISTS pgpubsub_notification_order_key ON {TABLE};
CREATE TRIGGER pgpubsub_notification_order_key BEFORE INSERT ON {TABLE} FOR EACH ROW
WHEN (octet_length(NEW.order_key) > 2000
    OR pg_catalog.getdatabaseencoding() = 'SQL_ASCII' AND NEW.order_key ~ '[^ -~]')
EXECUTE FUNCTION pgpubsub_notification_order_key();
"""

# Rows that nobody would have looked at, and keys that are long and were there before.
MENDED = f"""
UPDATE {TABLE} SET state = 'ready' WHERE state = 'delayed' AND run_after IS NULL
    OR state = 'leased' AND lease_until IS NULL;
UPDATE {TABLE} SET order_key = {HASH.format("order_key")}
    WHERE octet_length(order_key) > 2000;
"""


def make_or_complete_table(apps: Any, schema_editor: Any) -> None:
    """Bring the table to the state of the model; safe to be run again."""
    connection = schema_editor.connection
    if connection.vendor != "postgresql":
        return
    model = apps.get_model("pgpubsub", "Notification")
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)", [TABLE])
        exists = cursor.fetchone()[0] is not None
    if not exists:
        schema_editor.create_model(model)
    else:
        _complete(model, schema_editor)
    # Without parameters: Django's cursor would take % in the text for one.
    schema_editor.execute(DB_VERSION, params=None)


def _complete(model: Any, schema_editor: Any) -> None:
    schema_editor.execute(TAKE_OVER, params=None)
    schema_editor.execute(WIDER_ID, params=None)
    with schema_editor.connection.cursor() as cursor:
        introspection = schema_editor.connection.introspection
        columns = {each.name for each in introspection.get_table_description(cursor, TABLE)}
        constraints = introspection.get_constraints(cursor, TABLE)
    for field in model._meta.concrete_fields:
        if field.column not in columns:
            schema_editor.add_field(model, field)
    for index in model._meta.indexes:
        if index.name not in constraints:
            schema_editor.add_index(model, index)
    for constraint in model._meta.constraints:
        if constraint.name not in constraints:
            schema_editor.add_constraint(model, constraint)


def drop_table(apps: Any, schema_editor: Any) -> None:
    """Drop the table with its rows."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(f"DROP TABLE IF EXISTS {TABLE}")
        schema_editor.execute("DROP FUNCTION IF EXISTS pgpubsub_notification_db_version()")


def make_functions(apps: Any, schema_editor: Any) -> None:
    """Make the functions of the table's own triggers as they are now."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(DB_VERSION, params=None)


def add_keys_and_states(apps: Any, schema_editor: Any) -> None:
    """Have the database hash long keys and refuse rows without their time; safe to be run again."""
    connection = schema_editor.connection
    if connection.vendor != "postgresql":
        return
    model = apps.get_model("pgpubsub", "Notification")
    schema_editor.execute(MENDED, params=None)
    schema_editor.execute(ORDER_KEY, params=None)
    schema_editor.execute(f"ALTER TABLE {TABLE} DROP CONSTRAINT IF EXISTS {_DUE}")
    for constraint in model._meta.constraints:
        if constraint.name == _DUE:
            schema_editor.add_constraint(model, constraint)


def remove_keys_and_states(apps: Any, schema_editor: Any) -> None:
    """Undo that; keys that were hashed stay so."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(f"ALTER TABLE {TABLE} DROP CONSTRAINT IF EXISTS {_DUE}")
        schema_editor.execute("DROP FUNCTION IF EXISTS pgpubsub_notification_order_key() CASCADE")


_DUE = "pgpubsub_notification_due"
