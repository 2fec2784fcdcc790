"""Programs of random ORM operations, compared on this backend and on Django's own."""
