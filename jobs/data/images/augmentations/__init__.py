"""The built-in augmentations: random views of images, functions of (seed, step, pair, view) alone.

Each module holds a function of its name: images [c, C, H, W] in [0, 1], settings (the job's `augment`), seed, step,
pairs int64 [c], view (0 or 1), **options, whatever of these it asks for, -> float32 of the same shape. An image's view
must depend on no other image of the batch, or ranks and micro-batches would change it.
"""
