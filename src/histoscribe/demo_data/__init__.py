"""A crop of a mouse brain section with 49 Visium spots; CREDITS.md says whose it is."""
