from graphs import images, randomized, reference, worker

__all__ = ["images", "randomized", "reference", "worker"]
