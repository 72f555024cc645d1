"""Formats beside float32 and int8 LiteRT, and whether a file says what the module says."""
