"""Helpers that everything else in d2lite stands on."""
