"""The attributes of Django's queries in the supported versions.

A kept statement must not depend on an attribute that nobody has looked at. If a version of Django
has attributes that are not listed here, no statement is kept, and a system check reports that.
"""

from __future__ import annotations

from django.db.models.sql import Query, UpdateQuery

from ..fingerprints import unpatched

# The attributes of a Query. `statement_cache.entry_for` checks those that may affect a statement.
_ATTRIBUTES = frozenset(
    {
        "_annotation_select_cache",
        "_extra_select_cache",
        "_filtered_relations",
        "alias_cols",
        "alias_map",
        "alias_prefix",
        "alias_refcount",
        "annotation_select_mask",
        "annotations",
        "base_table_class",
        "combinator",
        "combinator_all",
        "combined_queries",
        "compiler",
        "contains_subquery",
        "default_cols",
        "default_ordering",
        "deferred_loading",
        "distinct",
        "distinct_fields",
        "empty_result_set_value",
        "explain_info",
        "external_aliases",
        "extra",
        "extra_order_by",
        "extra_select_mask",
        "extra_tables",
        "filter_is_sticky",
        "group_by",
        "high_mark",
        "join_class",
        "low_mark",
        "max_depth",
        "model",
        "order_by",
        "select",
        "select_for_no_key_update",
        "select_for_update",
        "select_for_update_nowait",
        "select_for_update_of",
        "select_for_update_skip_locked",
        "select_related",
        "selected",
        "standard_ordering",
        "subq_aliases",
        "subquery",
        "table_map",
        "used_aliases",
        "values_select",
        "where",
    }
)


def unknown_attributes(cls: type) -> set[str]:
    """Return the attributes of a query of this class that `_ATTRIBUTES` does not have."""
    of_class = {
        name
        for name, value in vars(cls).items()
        if not name.startswith("__") and not hasattr(value, "__get__")
    }
    return (of_class | set(vars(cls(None)))) - _ATTRIBUTES


# The additional attributes of an UpdateQuery.
_OF_UPDATES = frozenset({"related_ids", "related_updates", "values"})

UNKNOWN = unknown_attributes(Query) | (unknown_attributes(UpdateQuery) - _OF_UPDATES)
if UNKNOWN:
    unpatched.append(
        (
            f"django.db.models.sql.Query with {', '.join(sorted(UNKNOWN))}",
            "statements are not kept",
        )
    )
