"""`bench profile`: what the sampled attention saves, measured against the plain path."""
