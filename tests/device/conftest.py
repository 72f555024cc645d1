from graphs import worker

__all__ = ["worker"]
