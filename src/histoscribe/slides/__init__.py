"""One file per backend; `open.py` chooses."""
