"""Code that makes a run faster or lets it fit into memory. It changes results by rounding only.

The main function is `class_gradients`. The modules are:

- ``gradients``: three implementations of class gradients, and the choice between them.
- ``forward``: a faster forward pass of the ConvNet on a CPU, for phase 2 and the steps of theta.
- ``passes``: how many images go through a network at once, and how passes share the cores of a CPU.
- ``recording``: steps that are recorded as CUDA graphs and replayed.
- ``memory``: smaller passes when memory runs out, and the peak memory of a piece of work.
- ``precision``: TF32 or float32 on CUDA.
- ``training``: the steps of theta.
- ``testing``: the classes that a trained network predicts.
- ``trust``: which networks the faster ways are right for.
"""

from .gradients import batch_gradient, class_gradients

__all__ = ["batch_gradient", "class_gradients"]
