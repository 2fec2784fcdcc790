"""django-pgpubsub's own tests, on `pgbackend.pubsub`; see README.md."""
