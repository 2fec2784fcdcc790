"""Let rows be restored with an empty search path: the function is made anew as it is now."""

from django.db import migrations

from pgbackend.pubsub.schema import make_functions


class Migration(migrations.Migration):
    dependencies = [("pgpubsub", "0010_unique_and_periodic")]
    operations = [migrations.RunPython(make_functions, migrations.RunPython.noop)]
