"""``pyro-nas compare``: search methods at an equal budget."""
