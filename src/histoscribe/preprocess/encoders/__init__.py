"""Describers of cells, one contract."""
