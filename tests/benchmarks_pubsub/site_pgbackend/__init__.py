"""The application of the peer pgbackend."""
