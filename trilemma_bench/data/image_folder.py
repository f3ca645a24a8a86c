"""Anybody's own images: a folder or zip of image files, an npz or an npy.

Where a folder or zip has both `train` and `test` at its top, or in the one folder that it holds, these are the splits;
else all of it is `train`.
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
    around = _folder_of_splits(root)
    if split == "test" and around is None:
        raise NoSplitError(f"{root}: has no test images. Put them in a folder 'test' beside a folder 'train'.")
    return open_images(root, subfolder=None if around is None else f"{around}/{split}".lstrip("/"))


def _folder_of_splits(root: Path) -> str | None:
    """The folder that holds both splits, "" for the top, or None where there are none."""
    top = top_folders(root)
    for around in ("", *(top if len(top) == 1 else ())):
        found = top_folders(root, around) if around else top
        if set(SPLITS) <= found:
            return around
        if "train" in found and (others := sorted(found & {"val", "valid", "validation"})):
            raise DataError(
                f"{root}: has folders 'train' and '{others[0]}'. Call the held-out images 'test', or name the folder "
                "'train' alone: else both would count as training images."
            )
    return None


DATASET = Dataset(name=NAME, shape=(0, 0, 0), splits=SPLITS, open=open_split)
