"""Words that may stand before a parenthesis in SQL without an effect on the session.

This module also finds the statements that have no other words there, and those that may be sent
behind others.
"""

from __future__ import annotations

import re

from .masking import compiled

_KEYWORDS = """
    all and any array as between bit by case cast char character conflict decimal distinct dec
    else except exists filter float following from group grouping having ilike in int integer
    intersect interval is join key lateral like limit materialized not null nullif numeric of
    offset on only or over partition preceding returning row rollup select set sets cube similar
    some symmetric table tablesample then time timestamp timestamptz timetz to unbounded union
    using values varbit varchar varying when where with within
"""

# The server's common functions that do nothing to the session. Any other function may do anything.
_FUNCTIONS = """
    abs acos age array_agg array_append array_cat array_dims array_length array_lower array_ndims
    array_position array_positions array_prepend array_remove array_replace array_to_json
    array_to_string array_to_tsvector array_upper ascii asin atan atan2 avg bit_and bit_count
    bit_length bit_or bool_and bool_or broadcast btrim cardinality cbrt ceil ceiling char_length
    character_length chr clock_timestamp coalesce concat concat_ws convert_from convert_to corr cos
    count covar_pop covar_samp cume_dist current_database current_schema current_schemas
    current_setting current_time current_timestamp date date_add date_bin date_part date_subtract
    date_trunc decode degrees dense_rank div encode every exp extract factorial first_value floor
    format format_type gcd gen_random_uuid generate_series generate_subscripts
    get_byte greatest has_column_privilege has_schema_privilege has_table_privilege host initcap
    isempty isfinite json_agg json_array_elements json_array_elements_text json_array_length
    json_build_array json_build_object json_each json_each_text json_extract_path
    json_extract_path_text json_object json_object_agg json_object_keys json_strip_nulls
    json_typeof jsonb_agg jsonb_array_elements jsonb_array_elements_text jsonb_array_length
    jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path
    jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_agg jsonb_object_keys
    jsonb_path_exists jsonb_path_match jsonb_path_query jsonb_path_query_array
    jsonb_path_query_first jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_to_record
    jsonb_to_recordset jsonb_typeof json_to_record json_to_recordset justify_days justify_hours
    justify_interval lag last_value lcm lead least left length ln localtime localtimestamp log
    log10 lower lower_inc lower_inf lpad ltrim make_date make_interval make_time make_timestamp
    make_timestamptz masklen max md5 min mod mode network now nth_value ntile num_nonnulls num_nulls
    numnode obj_description octet_length overlay parse_ident percent_rank percentile_cont
    percentile_disc pg_backend_pid pg_column_size pg_database_size pg_get_constraintdef
    pg_get_expr pg_get_indexdef pg_get_serial_sequence pg_get_userbyid pg_get_viewdef
    pg_indexes_size pg_is_in_recovery pg_relation_size pg_size_pretty pg_sleep pg_sleep_for
    pg_sleep_until pg_table_is_visible pg_table_size pg_total_relation_size pg_typeof
    phraseto_tsquery pi plainto_tsquery position power querytree quote_ident quote_literal
    quote_nullable radians random range_agg range_merge rank regexp_count regexp_instr regexp_like
    regexp_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table
    regexp_substr regr_count regr_slope repeat replace reverse right round row_number row_to_json
    rpad rtrim scale sha224 sha256 sha384 sha512 sign sin split_part sqrt starts_with
    statement_timestamp stddev stddev_pop stddev_samp string_agg string_to_array string_to_table
    strip strpos substr substring sum tan timeofday timezone to_ascii to_char to_date to_hex
    to_json to_jsonb to_number to_regclass to_regproc to_regtype to_timestamp to_tsquery
    to_tsvector transaction_timestamp translate trim trim_array trim_scale trunc ts_headline
    ts_lexize ts_rank ts_rank_cd txid_current unaccent unnest upper upper_inc upper_inf
    user var_pop var_samp variance version websearch_to_tsquery width_bucket xmlagg
    pg_current_xact_id pg_notify pg_advisory_xact_lock pg_advisory_xact_lock_shared
    pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared set_config
"""

# The empty word means a parenthesis after another one, after an operator, or after a comma.
HARMLESS = frozenset({"", *_KEYWORDS.split(), *_FUNCTIONS.split()})

_HEADS = compiled(r";[\s'(]*+(\w*)")

# Includes the quote that stands for a name in quotes.
_CALLED = re.compile(r"([\w$.']*)\s*+\(")

# Matches names followed by a list of columns: of a table in INSERT, of a query in WITH.
_COLUMNS = compiled(r"\binto~[\w.]*@\( | \b\w++@\([^()]*+\)@as\b@(?:(?:not~)?materialized\b@)?\(")

_PLAIN_HEADS = frozenset(
    {
        "",
        "delete",
        "explain",
        "insert",
        "merge",
        "select",
        "set",
        "show",
        "update",
        "values",
        "with",
    }
)

# SET TRANSACTION must come first in its transaction, so SET cannot follow others.
_FOLLOWING_HEADS = _PLAIN_HEADS - {"set"}


def can_follow_others(code: str) -> bool:
    """Return whether statements may follow others in one message, in their transaction."""
    heads = set(_HEADS.findall(code))
    return heads != {""} and _FOLLOWING_HEADS.issuperset(heads)


def is_plain(code: str) -> bool:
    """Return whether all statements call harmless functions only, and begin with known words."""
    if not _PLAIN_HEADS.issuperset(_HEADS.findall(code)):
        return False
    called = _CALLED.findall(_COLUMNS.sub(",(", code))
    return HARMLESS.issuperset(each.removeprefix("pg_catalog.") for each in called)
