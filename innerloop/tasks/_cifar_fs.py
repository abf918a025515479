"""CIFAR-FS: the hundred classes of CIFAR-100, 600 images of each, for few-shot learning."""

from innerloop.tasks.files import Folder, needed_folder, read_lines
from innerloop.tasks.image_files import image_folder
from innerloop.tasks.splits import Splits, require_disjoint

SIZE = 32


def cifar_fs(*, data: Folder = None) -> Splits:
    """The split of the data's authors: 64 classes for meta-training, 16 validation and 20 test.

    Images are uint8 `(classes, 600, 32, 32, 3)`, read once and kept in the cache folder.

    Source: Bertinetto, Henriques, Torr and Vedaldi 2019, "Meta-learning with differentiable
    closed-form solvers" (arXiv 1805.08136), where the files are linked.

    Args:
        data: The folder of the files, or the folder above `cifar-fs/`; by default the folder that
            the environment variable INNERLOOP_DATA names. The files, as they are published, are
            `data/CLASS/*.png`, and `splits/bertinetto/train.txt`, `val.txt` and `test.txt` with one
            class per line. They are not downloaded.

    Raises:
        DataError: If the folder or a file is missing, is no image, or a class is in two splits.
    """
    expected = "data/CLASS/*.png and splits/bertinetto/*.txt"
    folder = needed_folder(data, "cifar-fs", expected, ("splits",))
    lists = folder / "splits" / "bertinetto"
    names = {part: read_lines(lists / f"{part}.txt") for part in ("train", "val", "test")}
    require_disjoint(names, "classes")
    return Splits(*(image_folder(folder / "data", SIZE, names=names[part]) for part in names))
