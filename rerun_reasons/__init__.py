"""What a run would do, and why, in plain words: ``make why``. It asks Snakemake; the library knows nothing of it."""
