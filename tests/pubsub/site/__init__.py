"""The application whose channels the tests of pubsub use."""
