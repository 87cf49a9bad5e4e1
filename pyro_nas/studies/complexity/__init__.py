"""``pyro-nas complexity``: every λ from one training."""
