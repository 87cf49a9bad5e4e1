"""Graph: network families as graphs whose edges carry alternative primitives. Knows nothing of probability."""
