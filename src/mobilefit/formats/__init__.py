"""Formats beside LiteRT."""
