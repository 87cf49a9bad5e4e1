"""Studies: the commands, each a question asked of this package. The only wing that imports models and inference."""
