"""Training images that are broken, up to a number that the recipe allows: the next one of its class stands in for each."""

from __future__ import annotations

import numpy as np
from PIL import Image

from layerzoo.data.sources import ImageSet
from layerzoo.errors import DataRefused, bad_value

NONE = np.empty(0, np.int64)


def lasting(error: DataRefused) -> bool:
    """Whether an image that could not be read never can be; a file that the system does not give may be there the next time."""
    return not getattr(error.__cause__, "errno", None)


class Unreadable:
    """The broken images that a process has met, each said once.

    What stands in for an image rests on the files alone: it is the same in every epoch, on every rank and worker, and in a resumed run.

    Args:
        images: the set.
        limit: how many may be broken.
        index: numbers of the images that may stand in, ascending.
    """

    def __init__(self, images: ImageSet, limit: int = 0, index: np.ndarray = NONE):
        self.images, self.limit, self.index = images, limit, index
        self.met: dict[int, str] = {}

    def read(self, i: int) -> tuple[Image.Image, str]:
        """Image i and "", or what stands in for it and why. Raises DataRefused if nothing may or can."""
        try:
            return self.images.read(i), ""
        except DataRefused as error:
            if not (self.limit and lasting(error)):
                raise
            for mate in self.mates(i)[: self.limit]:  # one of them is whole if no more are broken than may be
                try:
                    return self.images.read(int(mate)), str(error)
                except DataRefused as other:
                    if not lasting(other):
                        raise
            raise

    def mates(self, i: int) -> np.ndarray:
        """Numbers of the others of the class of image i, those behind it first."""
        mates = self.index[self.images.labels[self.index] == self.images.labels[i]]
        return np.roll(mates[mates != i], -np.searchsorted(mates, i))

    def add(self, met: dict[int, str]) -> None:
        """Note reasons by number. Raises DataRefused if there are more than the limit."""
        for i in met.keys() - self.met.keys():
            print(f"broken, another of its class stands in: {met[i]}", flush=True)
        self.met |= met
        if len(self.met) > self.limit:
            raise bad_value(
                self.images.title, got=f"{len(self.met)} images that cannot be read", expected=f"at most data.max_unreadable = {self.limit}",
                do="\n".join(["The first:", *[*self.met.values()][:5]]), kind=DataRefused)

    def mend(self, pixels: np.ndarray, met: dict[int, str]) -> None:
        """Note reasons by number, and put what stands in for these images in their places in the whole set (N, ...)."""
        self.add(met)
        for i in met:
            whole = [mate for mate in self.mates(i) if mate not in met]
            if not whole:
                raise DataRefused(met[i])
            pixels[i] = pixels[whole[0]]
