"""How far three calls go through this package, and what they cost: `make ways`."""
