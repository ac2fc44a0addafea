"""Expression of whole samples: GDC files and matrices in, one linear table of patients out."""
