"""Fitting: scaling, losses, loop, checkpoint."""
