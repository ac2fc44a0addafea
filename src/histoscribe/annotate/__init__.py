"""Zero-shot annotation: words put to regions and cells."""
