"""What each source string opens, and what it refuses by name."""

import importlib.util
import io
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import timm.data
from folders import make_folder, picture
from PIL import Image

from layerzoo.data.sources import GreySet, ImageSet, check_source, open_source
from layerzoo.errors import DataRefused, Refusal

PAIR = {"cat": 3, "dog": 2}


def test_digits_are_embedded_and_balanced():
    source = open_source("digits")
    train, test = source.splits["train"], source.splits["test"]
    assert source.classes == [str(c) for c in range(10)] and len(train) + len(test) == 1797
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    assert 0.19 < share.min() and share.max() <= 0.2
    image = train.read(0)
    assert image.size == (32, 32) and image.mode == "RGB" and image.getextrema()[0][1] > 240
    again = open_source("digits").splits["train"]
    assert np.array_equal(np.asarray(again.read(7)), np.asarray(train.read(7))) and np.array_equal(again.labels, train.labels)


def test_digits_keep_their_greys():
    from sklearn.datasets import load_digits

    source, data = open_source("digits").splits, load_digits()
    centres = np.asarray(source["train"].read(0))[2::4, 2::4, 0].astype(float)
    assert np.corrcoef(centres.ravel(), data.images[0].ravel())[0, 1] > 0.97


def test_folder_lists_classes_and_files_in_order(tmp_path):
    make_folder(tmp_path, {"train": {"dog": 2, "cat": 12}, "test": PAIR})
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ["cat", "dog"] and set(source.splits) == {"train", "test"}
    train = source.splits["train"]
    assert train.labels.tolist() == [0] * 12 + [1] * 2
    assert train.name(10) == str(tmp_path / "train" / "cat" / "010.png")
    assert np.array_equal(np.asarray(train.read(10)), np.asarray(Image.open(train.name(10))))


def test_grey_is_luma_in_three_channels(tmp_path):
    make_folder(tmp_path, {"train": PAIR, "test": PAIR})
    colour, grey = (open_source(f"{prefix}folder:{tmp_path}") for prefix in ("", "grey:"))
    assert grey.classes == colour.classes and grey.splits.keys() == colour.splits.keys()
    ours, base = grey.splits["train"], colour.splits["train"]
    assert ours.labels.tolist() == base.labels.tolist() and ours.name(1) == base.name(1) and ours.random_access
    pixels, rgb = np.asarray(ours.read(1)), np.asarray(base.read(1)).astype(float)
    assert (pixels == pixels[..., :1]).all() and np.abs(pixels[..., 0] - rgb @ [0.299, 0.587, 0.114]).max() <= 1
    index = np.arange(3)
    assert ours.listing(index) == base.listing(index) and ours.origin != base.origin
    assert ours.fingerprint() not in ("", base.fingerprint()), "cached apart"


def test_grey_of_a_source_that_is_read_in_order():
    class Stream(ImageSet):
        random_access = False

        def __iter__(self):
            for i in range(2):
                self.labels[i] = 5 + i  # known once read
                yield Image.fromarray(picture(i))

    grey = GreySet(Stream("stream", [-1, -1]))
    pixels = [np.asarray(image) for image in grey]
    assert len(pixels) == 2 and all((p == p[..., :1]).all() for p in pixels)
    assert grey.labels.tolist() == [5, 6] and not grey.random_access and grey.fingerprint() == ""


def test_folders_within_class_folders_and_files_that_are_no_images(tmp_path):
    make_folder(tmp_path, {"train": PAIR, "test": PAIR})
    cat = tmp_path / "train" / "cat"
    (cat / "more" / "even.png").mkdir(parents=True)
    (cat / "000.png").rename(cat / "more" / "even.png" / "Ünï \n.PNG")
    for name in ("._001.png", ".DS_Store", "notes.txt"):
        (cat / name).write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    train = open_source(f"folder:{tmp_path}").splits["train"]
    assert [os.path.basename(train.name(i)) for i in range(3)] == ["001.png", "002.png", "Ünï \n.PNG"]
    assert train.read(2).size == (8, 8)


@pytest.mark.parametrize("name, split", [("val", "val"), ("validation", "val"), ("valid", "val"), ("test", "test")])
def test_names_of_splits(name, split, tmp_path):
    make_folder(tmp_path, {"train": PAIR, name: PAIR, "extra": PAIR})
    assert set(open_source(f"folder:{tmp_path}").splits) == {"train", split}


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_folder(tmp_path / "set", {"train": PAIR, "test": PAIR})
    assert len(open_source("folder:~/set").splits["train"]) == 5


@pytest.mark.parametrize("counts, said", [
    (None, ": got no such folder, expected train/ with one folder per class, and val/ or test/ likewise. Correct the path, or move"),
    ({}, ": got no folders, expected train/ with one folder per class"),
    ({"cat": {"x": 1}, "dog": {"x": 1}}, ": got the folders cat, dog, expected train/ with one folder per class"),
    ({"train": PAIR, "val": PAIR, "valid": PAIR}, ": got val and valid, expected one val split. Rename or remove the other."),
    ({"train": {"cat": 1, "dog": 0, "eel": 0}}, "/train: got no images of dog, eel, expected images (.bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp) in a folder"),
    ({"train": PAIR, "test": PAIR | {"eel": 1}}, "/test: got the classes eel, which train/ lacks, expected the 2 classes of train/ (cat, dog). Give both the same"),
    ({"train": PAIR, "val": {"Cat": 1, "dog": 1}}, "/val: got the classes Cat, which train/ lacks, expected the 2 classes of train/ (cat, dog)."),
    ({"train": PAIR, "val": {"cat": 0, "dog": 0}}, "/val: got no images of any class, expected the 2 classes of train/ (cat, dog)."),
])
def test_folders_that_are_refused(counts, said, tmp_path):
    root = tmp_path / "set"
    if counts is not None:
        root.mkdir()
        make_folder(root, counts)
    with pytest.raises(DataRefused, match=re.escape(f"{root}{said}")):
        open_source(f"folder:{root}")


def test_train_without_class_folders(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataRefused, match=re.escape(f"{tmp_path / 'train'}: got no folders, expected images")):
        open_source(f"folder:{tmp_path}")


def test_class_without_validation_images_is_said(tmp_path):
    make_folder(tmp_path, {"train": PAIR | {"eel": 1}, "val": {"cat": 1, "dog": 0, "eel": 1}})
    with pytest.warns(UserWarning, match=re.escape(f"{tmp_path / 'val'} has no images of dog: its accuracy is over the other 2 classes")):
        val = open_source(f"folder:{tmp_path}").splits["val"]
    assert val.labels.tolist() == [0, 2]


@pytest.mark.parametrize("text", ["", "digit", "folder:", "cifar10", "torch/", "tfds", "digits/x", "imagenet/x", "grey:", "grey:x", "wds:"])
def test_strings_that_name_no_source(text):
    with pytest.raises(Refusal, match=re.escape(f"data.source: got {text!r}, expected digits, folder:PATH, wds:PATH, torch/NAME, hfds/NAME, hfids/NAME, tfds/NAME or wds/PATH. ")):
        check_source(text)


def test_missing_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match=re.escape(
            "data.source: got 'tfds/mnist' without the package tensorflow_datasets, expected tensorflow_datasets installed, which reads tfds/. "
            "Run `python -m pip install tensorflow-datasets`.")):
        check_source("tfds/mnist")


def test_listing_tells_added_renamed_and_relabelled_images(tmp_path):
    make_folder(tmp_path, {"train": PAIR, "test": PAIR})

    def listing(root=tmp_path):
        train = open_source(f"folder:{root}").splits["train"]
        return train.listing(np.arange(len(train)))

    known, cat = {listing()}, tmp_path / "train" / "cat"
    assert listing() in known
    for change in (
            lambda: (cat / "000.png").rename(cat / "009.png"), lambda: (cat / "001.png").unlink(),
            lambda: Image.fromarray(picture(0)).save(cat / "new.png"), lambda: (cat / "new.png").rename(tmp_path / "train" / "dog" / "new.png")):
        change()
        assert listing() not in known
        known.add(listing())
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert listing(moved) in known


class FakeTorch:
    """As torchvision's data sets: (image, label) by number."""

    classes = [("tench", "Tinca tinca"), "goldfish"]

    def __init__(self, count, targets=(0, 1)):
        self.targets = [targets[i % 2] for i in range(count)]

    def __getitem__(self, i):
        if i == 3:
            raise OSError("image file is truncated")
        return Image.fromarray(picture(i, channels=1)), self.targets[i]


def test_torchvision(monkeypatch, tmp_path):
    asked = []

    def create_dataset(name, root, split, download):
        asked.append((name, root, split, download))
        return FakeTorch(10 if split == "train" else 4)

    monkeypatch.setattr(timm.data, "create_dataset", create_dataset)
    monkeypatch.setenv("LAYERZOO_CACHE", str(tmp_path))
    source = open_source("torch/imagenet")
    assert asked == [("torch/imagenet", str(tmp_path / "datasets"), split, True) for split in ("train", "val")]
    assert source.classes == ["tench", "goldfish"] and set(source.splits) == {"train", "val"}
    train = source.splits["train"]
    assert train.read(2).mode == "RGB" and train.labels.tolist() == [0, 1] * 5 and train.fingerprint() == ""
    with pytest.raises(DataRefused, match=re.escape("image 3 of imagenet-train: got OSError: image file is truncated, expected a whole image file.")):
        train.read(3)
    assert train.listing(np.arange(4)) != train.listing(np.arange(5))


def test_unknown_name_of_torchvision():
    with pytest.raises(Refusal, match=re.escape("data.source: got 'torch/cifar', expected a known name such as torch/cifar10. After torch/ stands one of")):
        open_source("torch/cifar")


def test_data_that_cannot_be_downloaded(monkeypatch):
    def create_dataset(name, **options):
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(timm.data, "create_dataset", create_dataset)
    with pytest.raises(DataRefused, match=re.escape(
            "data.source: got 'torch/cifar10', which cannot be opened (OSError: no network), expected data that is here or can be downloaded. "
            "Without a network, write folder:PATH for images that are here.")):
        open_source("torch/cifar10")


class Columns(dict):
    """As a table of the hub: columns by name."""

    _fingerprint = "abc"


class FakeReader:
    """As timm's readers: of the hub by number, of shards from first to last."""

    def __init__(self, labels, names=()):
        self.labels, self.class_to_idx, self.label_key = labels, {n: i for i, n in enumerate(names)}, "fine_label"
        self.dataset = Columns({self.label_key: labels})
        self.dist_rank, self.dist_num_replicas = 3, 4

    def __getitem__(self, i):
        file = io.BytesIO()
        Image.fromarray(picture(i)).save(file, "png")
        return file, self.labels[i]


class FakeIterable:
    """As timm's iterable data sets."""

    def __init__(self, labels, count=None):
        self.reader, self.count = FakeReader(labels), len(labels) if count is None else count

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter([(Image.fromarray(picture(i)), label) for i, label in enumerate(self.reader.labels)])


def fake_hub(monkeypatch, labels, features):
    """The package datasets and timm on top of it, for one data set with the splits of `labels`."""
    kinds = {"Image": type("Image", (), {}), "ClassLabel": type("ClassLabel", (), {})}
    columns = {name: kinds[kind]() for name, kind in features.items()}
    found = {split: SimpleNamespace(features=columns) for split in labels}
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda name: found, __spec__=object(), **kinds))

    def create_dataset(text, split, input_key, target_key, download=False):
        assert (input_key, target_key) == ("img", "fine_label")
        if text.startswith("hfids/"):
            return FakeIterable(labels[split])
        return SimpleNamespace(reader=FakeReader(labels[split], ("cat", "dog")))

    monkeypatch.setattr(timm.data, "create_dataset", create_dataset)


def test_hub(monkeypatch):
    fake_hub(monkeypatch, {"train": [0, 1, 0], "validation": [1], "test": [-1, -1]}, {"img": "Image", "fine_label": "ClassLabel"})
    with pytest.warns(UserWarning, match=re.escape("some/set-test has no labels: it is left out")):
        source = open_source("hfds/some/set")
    assert source.classes == ["cat", "dog"] and set(source.splits) == {"train", "val"}
    train = source.splits["train"]
    assert train.labels.tolist() == [0, 1, 0] and np.array_equal(np.asarray(train.read(2)), picture(2)) and train.fingerprint() == "abc"


def test_hub_without_labels(monkeypatch):
    fake_hub(monkeypatch, {"train": [-1]}, {"img": "Image", "fine_label": "ClassLabel"})
    with pytest.warns(UserWarning), pytest.raises(DataRefused, match=re.escape("hfds/x: got the splits none, expected a labelled train split. Choose another source.")):
        open_source("hfds/x")


def test_sequential_sources(monkeypatch):
    fake_hub(monkeypatch, {"train": [0, 1, 2], "test": [0, -1]}, {"img": "Image", "fine_label": "ClassLabel"})
    source = open_source("hfids/x")
    train, test = source.splits["train"], source.splits["test"]
    assert not train.random_access and source.classes == []
    assert (train.dataset.reader.dist_rank, train.dataset.reader.dist_num_replicas) == (0, 1)
    assert [np.array_equal(np.asarray(image), picture(i)) for i, image in enumerate(train)] == [True] * 3 and train.labels.tolist() == [0, 1, 2]
    with pytest.raises(DataRefused, match=re.escape("1 of x-test: got no label, expected a class number. Use hfds/, which leaves unlabelled splits out.")):
        list(test)
    for count in (2, 4):
        train.dataset.count, train.labels = count, np.zeros(count, np.int64)
        with pytest.raises(DataRefused, match=re.escape(f"x-train: got 3 readable images, expected {count}, as its description says. Look for broken ones.")):
            list(train)


def test_webdataset_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(DataRefused, match=re.escape(f"data.source: got 'wds/{tmp_path}', which cannot be opened (FileNotFoundError: ")):
        open_source(f"wds/{tmp_path}")
    (tmp_path / "_info.json").write_text('{"splits": {"train": {}, "validation": {}}}')
    monkeypatch.setattr(timm.data, "create_dataset", lambda text, root, split: FakeIterable([0, 1]))
    assert set(open_source(f"wds/{tmp_path}").splits) == {"train", "val"}


def test_tensorflow_datasets(monkeypatch):
    builder = SimpleNamespace(info=SimpleNamespace(splits={"train": 1, "test": 2}))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", SimpleNamespace(builder=lambda name: builder, __spec__=object()))
    monkeypatch.setattr(timm.data, "create_dataset", lambda text, split, download: FakeIterable([0, 1]))
    assert set(open_source("tfds/mnist").splits) == {"train", "test"}


def test_a_set_without_read_says_so():
    with pytest.raises(NotImplementedError, match=re.escape("ImageSet must define read()")):
        ImageSet("bare", np.zeros(1)).read(0)
