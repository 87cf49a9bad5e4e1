"""Families: spaces ready to search, each a function of its sizes."""
