"""Predictors: one readable file each."""
