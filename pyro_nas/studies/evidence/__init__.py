"""``pyro-nas evidence``: several ways to the evidence, beside its exact value."""
