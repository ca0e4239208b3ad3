"""The incremental engine: only what a perturbed window can reach is computed again; the rest is read off a record."""
