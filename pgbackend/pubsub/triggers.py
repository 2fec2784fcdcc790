"""The triggers that send rows of a table, made by django-pgtrigger.

There is one for each operation of a channel. Its payload names the operation and whether it ran
before or after, so that only the listeners of that are called.

A stored channel's trigger writes the payload into the row alone. Its NOTIFY is never too long, and
the same for all rows of a transaction: the server sends it once.

A trigger runs in the session of whoever writes to the table. So its function has settings of its
own: the search path that finds the table of notifications, and those that change how columns are
written as JSON.
"""

from __future__ import annotations

from typing import Any

import pgtrigger

from .carried import BY_ROW, CONTEXT
from .channels import TriggerChannel
from .names import PREFIX
from .settings import MAX_PLAIN
from .wire import WAKE

# Settings of the function, which change the text of intervals, bytea, floats, and ranges of dates
# and times.
_FORMATS = """SET IntervalStyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1
                SET DateStyle = 'ISO, MDY' SET TimeZone = 'UTC'"""

# The schema of the table of notifications, then those that the migration itself looks in: where
# the application's migrations come first, that table is made later. Temporary tables come last.
_SETTINGS = f"""DO $settings$
            BEGIN
                EXECUTE 'ALTER FUNCTION {{function}} SET search_path = '
                || (
                    SELECT string_agg(quote_ident(name), ', ' ORDER BY place)
                    FROM (
                        SELECT name, min(place) FROM (
                            SELECT nspname, 0 FROM pg_class JOIN pg_namespace
                                ON pg_namespace.oid = relnamespace
                            WHERE pg_class.oid = to_regclass('pgpubsub_notification')
                            UNION ALL
                            SELECT * FROM unnest(current_schemas(false)) WITH ORDINALITY
                        ) AS found (name, place) GROUP BY name
                    ) AS path (name, place)
                ) || ', pg_temp';
            END $settings$;
            ALTER FUNCTION {{function}}
                {_FORMATS}"""


class Notify(pgtrigger.Trigger):
    """A trigger that notifies a channel of the row.

    *channel* is the channel's class; `trigger_listener` sets it where it is left out. Without one
    the notification goes out under the trigger's own name, as in django-pgpubsub.
    """

    stored = False

    def __init__(self, *, channel: type[TriggerChannel] | None = None, **kwargs: Any) -> None:
        self.channel = channel
        super().__init__(**kwargs)

    def get_declare(self, model: Any) -> list[tuple[str, str]]:
        """Return the variables of the function."""
        return [("payload", "JSONB")] + ([] if self.stored else [("reference", "BIGINT")])

    def get_func(self, model: Any) -> str:
        """Return the body of the function."""
        name = self.name if self.channel is None else self.channel.listen_name()
        send = self._stored(name, model) if self.stored else self._plain(name)
        return f"""
            payload := jsonb_build_object(
                'app', {_literal(model._meta.app_label)},
                'model', {_literal(model.__name__)},
                'operation', TG_OP,
                'when', TG_WHEN,
                'old', to_jsonb(OLD),
                'new', to_jsonb(NEW),
                'context', COALESCE(
                    NULLIF(current_setting('{CONTEXT}', true), '')::jsonb,
                    '{{}}'
                )
            );
            {send}
            IF TG_OP = 'DELETE' THEN
                RETURN OLD;
            END IF;
            RETURN NEW;
        """

    def render_execute(self, model: Any) -> str:
        """Return the call of the function, and after it the statements that give it its settings.

        django-pgtrigger has no other place for them. Migrations so need nothing of this package.
        """
        function = super().render_execute(model)
        return f"{function};\n            {_SETTINGS.format(function=function)}"

    def _plain(self, name: str) -> str:
        return f"""IF octet_length(payload::text) > {MAX_PLAIN}
                OR current_setting('{BY_ROW}', true) = 'on' THEN
                INSERT INTO pgpubsub_notification (channel, payload, state)
                VALUES ('{name}', payload, 'plain') RETURNING id INTO reference;
                PERFORM pg_notify('{name}', '@' || reference);
            ELSE
                PERFORM pg_notify('{name}', payload::text);
            END IF;"""

    def _stored(self, name: str, model: Any) -> str:
        channel = self.channel
        columns, values = "channel, payload", f"'{name}', payload"
        if channel is not None and channel.ordered_by is not None:
            column = _literal(model._meta.get_field(channel.ordered_by).column)
            columns += ", order_key"
            values += f", COALESCE(to_jsonb(NEW), to_jsonb(OLD)) ->> {column}"
        insert = f"INSERT INTO pgpubsub_notification ({columns}) VALUES ({values});"
        if channel is not None and channel.wake == "poll":
            return insert
        return f"{insert}\n            PERFORM pg_notify('{name}', '{WAKE}');"


class LockableNotify(Notify):
    """A trigger that stores the row for a channel with ``lock_notifications``."""

    stored = True


OPERATIONS = {
    "INSERT": pgtrigger.Insert,
    "UPDATE": pgtrigger.Update,
    "DELETE": pgtrigger.Delete,
}
TIMES = {"BEFORE": pgtrigger.Before, "AFTER": pgtrigger.After}


def notify_trigger(channel: type[TriggerChannel], when: str, operation: str) -> Notify:
    """Return the trigger of *channel*, *when* is BEFORE or AFTER, for one *operation*."""
    made = LockableNotify if channel.lock_notifications else Notify
    digest = channel.listen_name().rpartition("_")[2]
    return made(
        channel=channel,
        name=f"{PREFIX}{digest}_{when}_{operation}".lower(),
        when=TIMES[when],
        operation=OPERATIONS[operation],
    )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
