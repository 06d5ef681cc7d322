"""Image folders made on the spot."""

import numpy as np
from PIL import Image


def picture(seed, size=(8, 8), channels=3):
    """Random uint8 pixels (H, W, C) or, for one channel, (H, W)."""
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def make_folder(root, counts, size=(8, 8)):
    """root/<split>/<class>/<k>.png of random pixels; counts: {split: {class: images}}. Returns root."""
    for split, classes in counts.items():
        for c, count in classes.items():
            folder = root / split / c
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(picture((hash_of(split, c), k), size)).save(folder / f"{k:03d}.png")
    return root


def hash_of(*words):
    """The same in every process, unlike hash()."""
    return sum(ord(letter) * 31**i for i, letter in enumerate("/".join(words))) % 2**31
