"""What every score stands beside."""
