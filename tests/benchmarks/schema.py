"""The tables that all peers use, and how they are filled; plain SQL, none of the peers' own."""

# Rows that every run finds; what it adds has greater keys and is deleted after it.
ITEMS = 1_000_000
WIDES = 100_000
AUTHORS = 100

# Queries by primary key take theirs from the first of them, so that the cache holds them.
HOT = 10_000

# How many integer columns beside the key the tables of the sweep over fields have.
FIELDS = (1, 4, 9, 19, 39)

_WIDE_COLUMNS = """
    author_id bigint NOT NULL REFERENCES bench_author,
    n1 integer NOT NULL, n2 integer NOT NULL, n3 integer NOT NULL, n4 integer NOT NULL,
    big bigint NOT NULL,
    name varchar(100) NOT NULL, s2 varchar(100) NOT NULL,
    s3 varchar(100) NOT NULL, s4 varchar(100) NOT NULL,
    t text NOT NULL,
    f1 double precision NOT NULL, f2 double precision NOT NULL,
    b1 boolean NOT NULL, b2 boolean NOT NULL,
    d date NOT NULL, ts timestamptz NOT NULL, price numeric(10, 2) NOT NULL, u uuid NOT NULL
"""

_WIDE_VALUES = f"""
    1 + i % {AUTHORS}, i, i + 1, i + 2, i + 3, i, 'wide ' || i, 's2', 's3', 's4', repeat('t', 40),
    i / 3.0, i / 7.0, true, false, date '2026-01-01', timestamptz '2026-01-01 12:00+00', 9.99,
    '00000000-0000-0000-0000-000000000001'
"""


def statements() -> list[str]:
    """Return what makes and fills the tables, in an empty database."""
    made = [
        "CREATE TABLE bench_item (id bigserial PRIMARY KEY, name varchar(100) NOT NULL)",
        f"INSERT INTO bench_item (name) SELECT 'item ' || i FROM generate_series(1, {ITEMS}) i",
        "CREATE TABLE bench_author (id bigserial PRIMARY KEY, name varchar(100) NOT NULL)",
        f"INSERT INTO bench_author (name) SELECT 'a ' || i FROM generate_series(1, {AUTHORS}) i",
        "CREATE TABLE bench_book (id bigserial PRIMARY KEY, name varchar(100) NOT NULL,"
        " author_id bigint NOT NULL REFERENCES bench_author)",
        "INSERT INTO bench_book (name, author_id)"
        f" SELECT 'b ' || i, 1 + i % {AUTHORS} FROM generate_series(1, {AUTHORS * 5}) i",
        "CREATE TABLE bench_chapter (id bigserial PRIMARY KEY, name varchar(100) NOT NULL,"
        " book_id bigint NOT NULL REFERENCES bench_book)",
        "INSERT INTO bench_chapter (name, book_id)"
        f" SELECT 'c ' || i, 1 + i % {AUTHORS * 5} FROM generate_series(1, {AUTHORS * 20}) i",
        f"CREATE TABLE bench_wide (id bigserial PRIMARY KEY, {_WIDE_COLUMNS})",
        f"INSERT INTO bench_wide SELECT i, {_WIDE_VALUES} FROM generate_series(1, {WIDES}) i",
        f"SELECT setval('bench_wide_id_seq', {WIDES})",
        # What prefetch reads through: five wide rows an author, four notes each.
        f"CREATE TABLE bench_widebook (id bigserial PRIMARY KEY, {_WIDE_COLUMNS})",
        f"INSERT INTO bench_widebook SELECT i, {_WIDE_VALUES}"
        f" FROM generate_series(1, {AUTHORS * 5}) i",
        f"CREATE TABLE bench_widenote (id bigserial PRIMARY KEY, {_WIDE_COLUMNS},"
        " book_id bigint NOT NULL REFERENCES bench_widebook)",
        f"INSERT INTO bench_widenote SELECT i, {_WIDE_VALUES}, 1 + i % {AUTHORS * 5}"
        f" FROM generate_series(1, {AUTHORS * 20}) i",
    ]
    for table, column in (
        ("book", "author"),
        ("chapter", "book"),
        ("widebook", "author"),
        ("widenote", "book"),
    ):
        made.append(f"CREATE INDEX ON bench_{table} ({column}_id)")
    for count in FIELDS:
        columns = ", ".join(f"c{i} integer NOT NULL DEFAULT {i}" for i in range(count))
        made.append(f"CREATE TABLE bench_fields{count} (id bigserial PRIMARY KEY, {columns})")
        made.append(
            f"INSERT INTO bench_fields{count} (c0) SELECT i FROM generate_series(1, {HOT}) i"
        )
    # A row that takes its time, by a query like any other.
    for milliseconds in (20, 100):
        made.append(
            f"CREATE VIEW bench_slow{milliseconds} AS SELECT 1::bigint AS id,"
            f" 'slow'::varchar AS name FROM pg_sleep({milliseconds / 1000})"
        )
    return made


def clean_up() -> list[str]:
    """Return what takes the tables back to what `statements` made."""
    return [
        f"DELETE FROM bench_item WHERE id > {ITEMS}",
        f"DELETE FROM bench_wide WHERE id > {WIDES}",
        "VACUUM ANALYZE bench_item",
        "VACUUM ANALYZE bench_wide",
    ]
