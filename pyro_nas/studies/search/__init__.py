"""``pyro-nas search``: an architecture searched, derived, retrained and tested."""
