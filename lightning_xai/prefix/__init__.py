"""Passes that begin at a site: what a network makes before it is kept, found by passes and proved by traces."""
