"""What a bench found, as tables, pictures and a page."""
