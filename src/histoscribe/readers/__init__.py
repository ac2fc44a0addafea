"""Folder in, nouns out; never writes, never moves."""
