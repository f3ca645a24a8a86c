"""Anybody's own images: a folder or zip of image files, an npz or an npy.

Where a folder or zip has both `train` and `test` at its top, these are the splits; else all of it is `train`.
The labels are those of StyleGAN's dataset.json, or class subfolders (see `images.FileImages`).
"""

from __future__ import annotations

from pathlib import Path

from trilemma_bench.data import _helpers
from trilemma_bench.errors import DataError, NoSplitError
from trilemma_bench.images import open_images, top_folders
from trilemma_bench.kinds import Dataset, ImageSet

NAME = "image_folder"
SPLITS = ("train", "test")


def open_split(split: str, root: Path | None = None) -> ImageSet:
    """Open one split of the images at `root`; they are decoded when they are read.

    Args:
        split: train or test.
        root: The folder or file itself.

    Raises:
        NoSplitError: There are no test images.
        DataError: No `root`, nothing there, or images that `open_images` refuses.
    """
    _helpers.check_split(NAME, split, SPLITS)
    if root is None:
        raise DataError(f"{NAME} needs to know where the images are. Give the folder or file as --dataset PATH.")
    root = Path(root).expanduser()
    has_splits = set(SPLITS) <= top_folders(root)
    if split == "test" and not has_splits:
        raise NoSplitError(f"{root}: has no test images. Put them in a folder 'test' beside a folder 'train'.")
    return open_images(root, subfolder=split if has_splits else None)


DATASET = Dataset(name=NAME, shape=(0, 0, 0), splits=SPLITS, open=open_split)
