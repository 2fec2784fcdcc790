"""How long tests wait for what has to come."""

# Seconds. It only keeps a run from hanging, on a machine that has much else to do, too: nothing is
# promised by it. What never ends by itself, such as pg_sleep(600), takes longer than that.
PATIENCE = 120.0

# Seconds for what is promised to come at once, and takes milliseconds. What must not be waited for
# takes longer: a pool's own time-out is 30 s.
AT_ONCE = 20.0
