"""Scores, intervals, tables."""
