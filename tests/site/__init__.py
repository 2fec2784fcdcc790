"""The small project that requests are tested on."""
