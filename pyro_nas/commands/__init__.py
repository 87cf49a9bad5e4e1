"""Commands: with ``__main__``, the only place in ``pyro_nas`` that knows the rooms ``models`` and ``inference``."""
