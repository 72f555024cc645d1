"""The commands: each a frozen configuration and one function of it."""
