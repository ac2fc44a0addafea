"""Slide to cells."""
