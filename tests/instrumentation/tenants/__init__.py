"""A backend on top of pgbackend that keeps a request's tenant on the wrapper, and a site for it."""
