"""histoscribe reads gene expression and cell identity from routine H&E slides."""

__version__ = "0.1.0"
