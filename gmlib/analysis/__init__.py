"""Measurements on runs."""
