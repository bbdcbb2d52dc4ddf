"""Raw data to structures and splits."""
