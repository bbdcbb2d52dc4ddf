"""Variational dropout in the messages and updates of a backbone, with scales that depend on the input."""
