"""The only room that knows about speed: class gradients, recorded steps, memory, passes. Its door is `class_gradients`."""

from .gradients import batch_gradient, class_gradients

__all__ = ["batch_gradient", "class_gradients"]
