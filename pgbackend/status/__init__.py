"""A page for staff: pools, waiting tasks, long transactions and blocked statements, live.

    urlpatterns = [
        path("status/", include("pgbackend.status.urls")),
    ]

`urls.patterns` takes another test of who may see it. Nothing runs while nobody looks.

In reading order: `process` is what this process counts, and `server` what its database servers
say; `sampling` makes a snapshot of both each second while somebody looks; `views` shows them.
"""

from __future__ import annotations
