"""The verbs: each a configuration and one function of it, alike for the command line and for scripts."""
