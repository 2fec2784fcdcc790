"""The features: which of Django's tests are skipped, where, and for how many reasons."""

from django.db import connection

from pgbackend import bridged


def skipped() -> dict[str, set[str]]:
    """Return what is skipped beside Django's own skips, by reason."""
    ours = type(connection.features)(connection._connections[connection.alias])
    django = type(ours).__mro__[1](ours.connection)
    return {
        reason: names
        for reason, names in ours.django_test_skips.items()
        if reason not in django.django_test_skips
    }


def test_skips_without_the_bridge() -> None:
    """On the synchronous path only tests are skipped that want what this backend mends."""
    assert [len(names) for names in skipped().values()] == [1, 6]


async def test_skips_in_the_bridge() -> None:
    """In the bridge few tests are skipped, each for a reason that is a sentence.

    At most twelve, beside six that take for committed what the server rolled back.
    """
    reasons = await bridged(skipped)()
    assert 0 < sum(map(len, reasons.values())) <= 12 + 6
    assert all(reason.endswith(".") and " " in reason for reason in reasons)
