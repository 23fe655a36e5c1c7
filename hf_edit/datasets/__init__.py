"""Readers of published editing data: one module per format, each with `read(...) -> EditSet`."""
