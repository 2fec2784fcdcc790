"""The application of the peer django-pgpubsub."""
