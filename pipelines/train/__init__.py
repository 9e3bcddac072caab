"""Training from labels: tiles, splits, augmentation, the loop, and what comes of it.

What is trained is a model and a `task`: batches, a loss and metrics, plain values put together.
The loop, its checkpoints, precision and devices are Lightning's. Every batch follows from the seed
and its place in the run alone, so that a run that was killed and continued equals one that was not.
"""
