"""The small Orb: its training frames, its training, and the molecules and alloys that it must not see."""
