"""Reading: what is read off a posterior, given a guide or draws of it."""
