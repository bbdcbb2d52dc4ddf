"""The whole force head trained on cached node features, and what can be said of its weights' uncertainty."""
