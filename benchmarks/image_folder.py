"""From a folder of image files to predictions, as a user's commands, against nearest neighbours.

The folders are made of Omniglot and Fashion-MNIST: files of five colour modes and of 40 to 120
pixels per side, one of them cut off. Five classes are kept from training, and predicted from five
images each.

    python benchmarks/image_folder.py FOLDER
"""

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import innerloop as il
from innerloop.tasks.files import needed_folder
from innerloop.tasks.image_files import read_images

RESULT = Path(__file__).parent / "results" / "image-folder.json"
MODES = ["L", "RGB", "P", "1", "RGBA"]
SIZE, SHOTS, NEW = 28, 5, 5
IMAGES = "t10k-images-idx3-ubyte.gz"
FLAGS = "--recipe protonet --network strided --unreadable skip --steps 400 --validate-every 200"
KEPT = {"omniglot": "--ways 5", "fashion-mnist": "--split files --ways 5"}


def omniglot() -> np.ndarray:
    """45 characters, 20 drawings of each, black on white."""
    drawings = il.tasks.omniglot(classes=il.tasks.upright, size=64).train.rows
    return 255 - np.asarray(drawings).reshape(-1, 20, 64, 64)[:45]


def fashion_mnist() -> np.ndarray:
    """10 kinds of clothes, 100 images of each."""
    folder = needed_folder(None, "fashion-mnist", "its four files", (IMAGES,))
    read = lambda name, skip: np.frombuffer(
        gzip.decompress((folder / name).read_bytes())[skip:], np.uint8
    )
    images = read(IMAGES, 16).reshape(-1, 28, 28)
    labels = read("t10k-labels-idx1-ubyte.gz", 8)
    return np.stack([images[labels == label][:100] for label in range(10)])


def write(folder: Path, images: np.ndarray) -> None:
    """The files of a folder: `train/CLASS`, and `support` and `query` of the last classes."""
    rng = np.random.default_rng(0)
    known = len(images) - NEW
    for label, of_class in enumerate(images):
        for i, pixels in enumerate(of_class):
            part = "train" if label < known else "support" if i < SHOTS else "query"
            path = folder / part / f"class {label:02}"
            path.mkdir(parents=True, exist_ok=True)
            width, height = rng.integers(40, 120, 2).tolist()
            image = Image.fromarray(pixels).convert(MODES[i % len(MODES)])
            image.resize((width, height)).save(path / f"{i}.png")
    broken = folder / "train" / "class 03" / "7.png"
    broken.write_bytes(broken.read_bytes()[:100])


def nearest_neighbour(folder: Path) -> float:
    """The accuracy of the class of the nearest support image in pixels."""
    parts = {}
    for part in ("support", "query"):
        files = sorted((folder / part).rglob("*.png"))
        pixels = read_images(files, SIZE)[1].reshape(len(files), -1).astype(float)
        parts[part] = pixels, np.array([file.parent.name for file in files])
    (support, names), (query, expected) = parts["support"], parts["query"]
    distance = ((query[:, None] - support[None]) ** 2).sum(axis=-1)
    return float((names[distance.argmin(axis=1)] == expected).mean())


def measured(folder: Path, name: str, images: np.ndarray) -> dict:
    """What the two commands of the page give."""
    write(folder, images)
    innerloop = [sys.executable, "-m", "innerloop"]
    train = f"train images --data train --size {SIZE} {FLAGS} {KEPT[name]} --run run".split()
    predict = "predict run --support support --query query --csv out.csv --picture out.png"
    predict = predict.split()
    environment = os.environ | {"INNERLOOP_CACHE": str(folder / "cache")}
    seconds = []
    for command in (train, predict):
        begun = time.monotonic()
        subprocess.run([*innerloop, *command], cwd=folder, env=environment, check=True)
        seconds.append(round(time.monotonic() - begun, 1))
    with (folder / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    result = json.loads((folder / "run" / "result.json").read_text())
    right = [row["class"] == Path(row["file"]).parent.name for row in rows]
    return {
        "train": " ".join(["innerloop", *train]),
        "predict": " ".join(["innerloop", *predict]),
        "seconds": dict(zip(("train", "predict"), seconds, strict=True)),
        "test_accuracy": result["test"]["mean"]["accuracy"][-1],
        "images": len(rows),
        "predicted": float(np.mean(right)),
        "unknown": float(np.mean([row["unknown"] == "yes" for row in rows])),
        "nearest_neighbour": nearest_neighbour(folder),
    }


def main() -> None:
    """Writes results/image-folder.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = {
        name: measured(folder / name, name, make())
        for name, make in (("omniglot", omniglot), ("fashion-mnist", fashion_mnist))
    }
    RESULT.write_text(json.dumps({"cores": os.cpu_count(), "data": found}, indent=2) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
