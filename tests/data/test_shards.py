"""Shards: the folder's images in its order, whoever reads them; damaged or hostile ones are refused by name."""

import io
import json
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
from folders import make_folder
from safetensors.numpy import load_file, save_file

from layerzoo.data.loader import Feed
from layerzoo.data.shards import INDEX, scan
from layerzoo.data.sources import check_there, open_source
from layerzoo.data.streaming import StreamLoader
from layerzoo.errors import DataRefused
from layerzoo.pack import pack

COUNTS = {"train": {"cat": 11, "dog": 10}, "test": {"cat": 2, "dog": 1}}


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images", COUNTS, size=(40, 30))


@pytest.fixture
def shards(folder, tmp_path):
    """Of 1 MB, the smallest: all in one; those of several are in test_pack."""
    pack(f"folder:{folder}", tmp_path / "shards", 1)
    return tmp_path / "shards"


def equal(one, other):
    assert one.labels.tolist() == other.labels.tolist()
    assert all(np.array_equal(one.read(i), other.read(i)) for i in range(len(one)))


def test_what_is_packed_is_what_the_folder_holds(folder, shards):
    there, here = open_source(f"folder:{folder}"), open_source(f"wds:{shards}")
    assert here.classes == there.classes == ["cat", "dog"] and set(here.splits) == set(there.splits)
    for split, images in here.splits.items():
        equal(images, there.splits[split])
        index = np.arange(len(images))
        assert images.listing(index) == there.splits[split].listing(index) != images.listing(index[::-1])
    train = here.splits["train"]
    assert train.random_access and train.name(12) == f"{shards}/train/train-000000.tar: dog/001.png"


def test_without_an_index_the_headers_are_read(folder, shards):
    (shards / "train" / INDEX).unlink(), (shards / "test" / INDEX).unlink()
    here = open_source(f"wds:{shards}")
    assert here.classes == [] and here.splits["train"].name(12) == f"{shards}/train/train-000000.tar: 00000012.png"
    for split, images in here.splits.items():
        equal(images, open_source(f"folder:{folder}").splits[split])


def test_shards_side_by_side_with_their_split_in_the_name(shards, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for old, new in {"train/train-000000": "set-train-0000", "test/test-000000": "set-validation-0000"}.items():
        shutil.copy(shards / f"{old}.tar", flat / f"{new}.tar")
    splits = open_source(f"wds:{flat}").splits
    assert {split: len(images) for split, images in splits.items()} == {"train": 21, "val": 3}


def test_ranks_and_workers_share_without_overlap(shards):
    images, seen = open_source(f"wds:{shards}").splits["train"], []
    index = np.arange(len(images))
    for rank in range(2):
        feed = Feed(
            index=index, labels=index, num_classes=len(index), mean=[0.0] * 3, std=[1.0] * 3, batch_size=8, augment=None, rank=rank, world_size=2,
            name=images.name)
        loader = StreamLoader(images, 8, feed, 2)
        seen += [int(label) for _, labels, *_ in loader for label in labels]
        loader.close()
    assert sorted(seen) == list(range(21))


def test_in_grey_and_cached_by_the_state_of_the_files(shards):
    grey, train = (open_source(f"{prefix}wds:{shards}").splits["train"] for prefix in ("grey:", ""))
    assert grey.read(3).tobytes() == train.read(3).convert("L").convert("RGB").tobytes()
    before = train.fingerprint()
    assert before == open_source(f"wds:{shards}").splits["train"].fingerprint()
    os.utime(shards / "train" / "train-000000.tar", (1, 1))
    assert train.fingerprint() != before


def test_a_shard_that_vanished_or_was_cut_behind_our_back_names_the_image(shards):
    train, path = open_source(f"wds:{shards}").splits["train"], shards / "train" / "train-000000.tar"
    os.truncate(path, int(train.offset[20]) + 50)
    train.read(19)
    with pytest.raises(DataRefused, match=f"^image {re.escape(train.name(20))}: got .*, expected a whole image file"):
        train.read(20)
    path.unlink()
    with pytest.raises(DataRefused, match=f"^image {re.escape(train.name(3))}: got FileNotFoundError"):
        train.read(3)


@pytest.mark.parametrize("change, message", [
    (lambda root: shutil.rmtree(root), "got no such folder, expected uncompressed .tar files in train/ and val/ or test/"),
    (lambda root: shutil.rmtree(root / "train"), "got no shards of a train split"),
    (lambda root: (root / "test" / "test-000000.tar").unlink(), "got no .tar in {root}/test,")])
def test_folders_without_shards(shards, change, message):
    change(shards)
    with pytest.raises(DataRefused, match=re.escape(f"wds:{shards}: {message.format(root=shards)}")):
        check_there(f"wds:{shards}")


def test_shards_that_are_not_those_of_the_index(shards):
    path = shards / "train" / "train-000000.tar"
    size = path.stat().st_size
    os.truncate(path, size - 512)
    with pytest.raises(DataRefused, match=re.escape(f"{path}: got {size - 512:,} bytes, expected {size:,} bytes, as {path.parent / INDEX} states. Write")):
        open_source(f"wds:{shards}")
    path.rename(path.with_name("other.tar"))
    with pytest.raises(DataRefused, match=re.escape(f"other.tar: got {size - 512:,} bytes, expected no such shard")):
        open_source(f"wds:{shards}")


def _about(change):
    def call(arrays, about):
        change(about)
    return call


@pytest.mark.parametrize("change, got", [
    (lambda arrays, about: arrays["offset"].__setitem__(3, 10**9), "places outside of the shards"),
    (lambda arrays, about: arrays["offset"].__setitem__(3, -1), "places outside of the shards"),
    (lambda arrays, about: arrays["size"].__setitem__(3, -2**62), "places outside of the shards"),
    (lambda arrays, about: arrays["size"].__setitem__(3, 2**62), "places outside of the shards"),
    (lambda arrays, about: arrays["shard"].__setitem__(3, 1), "places outside of the shards"),
    (lambda arrays, about: arrays["shard"].__setitem__(3, -1), "places outside of the shards"),
    (lambda arrays, about: arrays.update(size=arrays["size"][:-1].copy()), "arrays {"),
    (lambda arrays, about: arrays.update(size=arrays["size"].astype(np.float64)), "arrays {"),
    (lambda arrays, about: arrays.update(name=arrays["name"][:, 0].copy()), "arrays {"),
    (lambda arrays, about: arrays.update(label=np.array(3)), "arrays {"),
    (lambda arrays, about: arrays.update(name=arrays["name"][:, :0].copy()), "arrays {"),
    (lambda arrays, about: arrays.update({key: array[:0].copy() for key, array in arrays.items()}), "arrays {"),
    (lambda arrays, about: arrays.pop("label"), "SafetensorError: "),
    (_about(lambda about: about.update(shards=about["shards"] * 2)), "shards that are not in the order of their names"),
    (_about(lambda about: about.update(format="2")), "format '2'"),
    (_about(lambda about: about.update(format=1)), "format 1"),
    (_about(lambda about: about.pop("shards")), "KeyError: 'shards'"),
    (_about(lambda about: about.update(shards=3)), "TypeError: "),
    (_about(lambda about: about.update(shards=["x"])), "TypeError: "),
    (_about(lambda about: about["shards"][0].update(bytes="many")), "ValueError: ")])
def test_indexes_that_are_damaged(shards, change, got):
    path = shards / "train" / INDEX
    arrays = load_file(path)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    about = json.loads(header["__metadata__"]["layerzoo"])
    change(arrays, about)
    save_file(arrays, path, {"layerzoo": json.dumps(about)})
    with pytest.raises(DataRefused, match=re.escape(f"{path}: got {got}") + ".*, expected (an index of shards, format 1. Write|.*as .* states)"):
        open_source(f"wds:{shards}")


@pytest.mark.parametrize("data", [b"", b"\0" * 4, b"\xff" * 64, b'\x02' + b"\0" * 7 + b"{}"])
def test_indexes_that_are_none(shards, data):
    (shards / "train" / INDEX).write_bytes(data)
    with pytest.raises(DataRefused, match=re.escape(f"{shards / 'train' / INDEX}: got ") + ".*, expected an index of shards, format 1"):
        open_source(f"wds:{shards}")


def test_an_index_nested_too_deep(shards):
    path = shards / "train" / INDEX
    save_file(load_file(path), path, {"layerzoo": "[" * 200_000})
    with pytest.raises(DataRefused, match=re.escape(f"{path}: got RecursionError: ") + ".*, expected an index of shards, format 1"):
        open_source(f"wds:{shards}")


def test_a_split_of_other_classes(folder, shards, tmp_path):
    other = make_folder(tmp_path / "other", {"train": {"cat": 1, "cow": 1}, "test": {"cat": 1, "cow": 1}})
    pack(f"folder:{other}", tmp_path / "more")
    shutil.rmtree(shards / "test")
    shutil.copytree(tmp_path / "more" / "test", shards / "test")
    with pytest.raises(DataRefused, match=re.escape(f"wds:{shards}: test: got classes 0 to 1, 2 names, expected classes 0 to 1 of train, named likewise.")):
        open_source(f"wds:{shards}")


def tar(*members, end=True):
    """Bytes of a tar of (name, data) or TarInfo; without its end, the last record is cut off."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as file:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            data = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(data) or info.size
            file.addfile(info, io.BytesIO(data))
        last = file.offset
    return made.getvalue() if end else made.getvalue()[:last]


def link(kind):
    info = tarfile.TarInfo("a.png")
    info.type, info.linkname = kind, "../../etc/passwd"
    return info


def broken_header(data, number):
    """A bit of the header of member `number` flipped, which makes its checksum wrong."""
    at, place = 0, 0
    while place < number:
        at += 512 + -(-int(data[at + 124:at + 135], 8) // 512) * 512
        place += 1
    return data[:at + 100] + bytes([data[at + 100] ^ 1]) + data[at + 101:]


def with_size(data, size):
    """The first member's size set, its checksum right."""
    header = bytearray(data[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def claimed(kind, size):
    """The header of a record about the member after it, which is said to have `size` bytes."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


GOOD = [("a.png", b"image"), ("a.cls", b"1"), ("b.png", b"image"), ("b.cls", b"0")]


def test_what_a_good_one_is(tmp_path):
    path = tmp_path / "x.tar"
    folder, extra = tarfile.TarInfo("deep"), ("deep/c.json", b"{}")
    folder.type = tarfile.DIRTYPE
    path.write_bytes(tar(*GOOD, folder, ("deep/c.JPEG", b"picture"), ("deep/c.cls", b" 12\n"), extra))
    found = scan(path)
    assert [(*places[1:],) for places in found] == [(5, 1, "a.png"), (5, 0, "b.png"), (7, 12, "deep/c.JPEG")]
    data = path.read_bytes()
    assert [data[offset:offset + size] for offset, size, *_ in found] == [b"image", b"image", b"picture"]
    path.write_bytes(tar(("a" * 150 + ".png", b"image"), ("a" * 150 + ".cls", b"1")))
    assert scan(path)[0][3] == "a" * 150 + ".png"


@pytest.mark.parametrize("data, got", [
    (b"", "ReadError: "),
    (b"\x1f\x8b" + b"\0" * 600, "ReadError: "),
    (b"PK\x03\x04" + b"\1" * 600, "ReadError: "),
    (bytes(1024), "no images"),
    (tar(*GOOD, end=False), "no header of a file and no end at byte 4,096 of 4,096"),
    (tar(*GOOD)[:1024 + 300], "no header of a file and no end at byte 1,024 of 1,324"),
    (tar(*GOOD)[:512 + 2], "a.png of 5 bytes at byte 512 of 514"),
    (broken_header(tar(*GOOD), 0), "ReadError: "),
    (broken_header(tar(*GOOD), 2), "no header of a file and no end at byte 2,048"),
    (with_size(tar(*GOOD), b"77777777777\0"), "a.png of 8,589,934,591 bytes at byte 512"),
    (with_size(tar(*GOOD), b"\xff" * 12), ""),
    (with_size(tar(*GOOD), b"\x80" + b"\xff" * 11), ""),
    (tar(link(tarfile.SYMTYPE), *GOOD[1:]), "a.png, which is no plain file"),
    (tar(link(tarfile.LNKTYPE), *GOOD[1:]), "a.png, which is no plain file"),
    (tar(link(tarfile.CHRTYPE), *GOOD[1:]), "a.png, which is no plain file"),
    (tar(link(tarfile.FIFOTYPE), *GOOD[1:]), "a.png, which is no plain file"),
    (tar(*GOOD, GOOD[0]), "a.png twice"),
    (tar(*GOOD[1:]), "cls of a"),
    (tar(GOOD[0], *GOOD[2:]), "png of a"),
    (tar(*GOOD, ("a.jpg", b"other")), "cls jpg png of a"),
    (tar(GOOD[0], ("a.cls", b"cat")), "b'cat' in a.cls"),
    (tar(GOOD[0], ("a.cls", b"-1")), "b'-1' in a.cls"),
    (tar(GOOD[0], ("a.cls", b"9" * 30)), "b'99999999999999999999' in a.cls"),
    (tar(GOOD[0], ("a.cls", "\u0661".encode())), "in a.cls"),
    (claimed(b"L", 2**60) + tar(*GOOD), "MemoryError: "),
    (claimed(b"x", 2**60) + tar(*GOOD), "MemoryError: "),
    (b"".join(claimed(kind, 10) + b"10 path=y\n".ljust(512, b"\0") for kind in [b"L", b"x"] * 2500) + tar(*GOOD), "RecursionError: ")])
def test_hostile_shards(tmp_path, data, got):
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    expected = "a whole uncompressed tar, for each key one image and its class, a number, in KEY.cls"
    with pytest.raises(DataRefused, match=f"^{re.escape(str(path))}: got (?!DataRefused).*{re.escape(got)}.*, expected {expected}. Fetch or write it again."):
        scan(path)
