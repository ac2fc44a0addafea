"""Finders of nuclei, one contract."""
