"""One package per dialect: its rows, field names, renderings and error bodies. Its oddities stay in it."""
