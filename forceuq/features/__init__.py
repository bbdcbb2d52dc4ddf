"""The atom-feature cache: what a backbone says of each atom, computed once."""
