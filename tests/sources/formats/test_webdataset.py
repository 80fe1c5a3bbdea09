"""A tar becomes rows: one row per key, a row with a reason per problem, and no exceptions."""

from __future__ import annotations

import gzip
import io
import itertools
import random
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.inputs.tars import (
    BLOCK_BYTES,
    END_BYTES,
    CountingFile,
    Entry,
    files,
    pack,
    with_checksum,
)
from support.runs.selection import examples

from pipeline.sources.formats.webdataset import MAX_VALUE_BYTES, TarRow, TarSpec, iter_rows

SPEC = TarSpec(("jpg", "png"), ("cls", "txt"), max_image_bytes=2000)
FIRST = b"\x89first\x00\xff" * 90
SECOND = b"second"


def read(
    data: bytes,
    spec: TarSpec = SPEC,
    *,
    size_bytes: int | None = None,
    is_wanted: Callable[[int], bool] = lambda row: True,
) -> list[TarRow]:
    size = len(data) if size_bytes is None else size_bytes
    return list(iter_rows(io.BytesIO(data), spec, size_bytes=size, is_wanted=is_wanted))


def outcome(row: TarRow) -> tuple[str | None, str]:
    return row.key, row.failure.reason.value if row.failure else "ok"


def outcomes(data: bytes, spec: TarSpec = SPEC) -> list[tuple[str | None, str]]:
    return [outcome(row) for row in read(data, spec)]


# ---------------------------------------------------------------------------- whole archives


def test_the_members_of_a_key_make_a_row():
    entries = [
        Entry("./"),
        Entry("photos", member_type=tarfile.DIRTYPE),
        Entry("LICENSE", b"of the archive, not of a row"),
        Entry("photos/.hidden", b"a name that begins with a dot has no key"),
        Entry("photos/one.jpg", FIRST),
        Entry("photos/one.cls", b"7"),
        Entry("photos/one.json", b"{}"),
        Entry("./two.TXT", "zw\u00f6lf".encode()),
        Entry("./two.PNG", SECOND),
    ]
    one, two = read(pack(entries))
    assert (one.key, one.member, one.image, one.values) == (
        ("photos/one", "photos/one.jpg", FIRST, (7, None))
    )
    assert (two.key, two.member, two.image, two.values) == (
        ("two", "./two.PNG", SECOND, (None, "zw\u00f6lf"))
    )
    assert (one.failure, two.failure) == (None, None)
    assert (one.num_bytes, two.num_bytes) == (len(FIRST) + 1, len(SECOND) + 6)


def test_the_first_declared_extension_that_a_key_has_is_its_image():
    orders = list(itertools.permutations(["png", "jpg", "left.jpg"]))
    entries = [
        Entry(f"{i}.{name}", name.encode()) for i, names in enumerate(orders) for name in names
    ]
    assert {row.image for row in read(pack(entries))} == {b"jpg"}
    spec = TarSpec(("left.jpg", "png"), (), 2000)
    assert {row.image for row in read(pack(entries), spec)} == {b"left.jpg"}


@pytest.mark.parametrize("fmt", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names_come_through_in_every_format(fmt: int):
    folder = "d" * 90 + "/" + "e" * 60
    names = [f"{folder}/{'k' * 80}.jpg", "caf\u00e9/\u5bd2.jpg"]
    if fmt != tarfile.USTAR_FORMAT:
        names.append("n" * 3000 + ".jpg")
    rows = read(pack([Entry(name, SECOND) for name in names], fmt=fmt))
    assert [(row.member, row.image) for row in rows] == [(name, SECOND) for name in names]


def test_a_name_in_another_encoding_becomes_text_that_can_be_stored():
    data = pack([Entry("caf\u00e9.jpg", SECOND)], fmt=tarfile.GNU_FORMAT, encoding="latin-1")
    (row,) = read(data)
    assert (row.key, row.image) == ("caf\\xe9", SECOND)
    row.member.encode()


def test_an_old_archive_without_a_magic_is_read():
    header = Entry("a.jpg", SECOND).to_bytes(tarfile.USTAR_FORMAT, "utf-8")[:BLOCK_BYTES]
    old = with_checksum(header[:257] + bytes(255))
    body = SECOND + bytes(BLOCK_BYTES - len(SECOND))
    assert outcomes(old + body + bytes(END_BYTES)) == [("a", "ok")]


def test_extended_headers_that_say_other_things_are_passed_over():
    pax = {"comment": "x" * 5000, "mtime": "1.5", "SCHILY.xattr.user.a": "b"}
    everywhere = tarfile.TarInfo.create_pax_global_header({"comment": "a commit"})
    data = everywhere + pack([Entry("a.jpg", FIRST, pax=pax), *files(b__jpg=SECOND)])
    assert [row.image for row in read(data)] == [FIRST, SECOND]


def test_an_empty_archive_has_no_rows():
    assert read(bytes(END_BYTES)) == []
    assert read(bytes(10240)) == []


MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "a@1", "a@2", "x/a", "b@0"]),
        st.sampled_from(["jpg", "png", "cls", "txt", "json", "JPG"]),
    ),
    max_size=14,
)


@dataclass
class _Expected:
    key: str
    members: dict[str, bytes]
    is_first: bool


def reference(members: Sequence[tuple[str, str, bytes]]) -> list[_Expected]:
    """A plain implementation of the WebDataset convention: the reference."""
    rows: list[_Expected] = []
    keys: set[str] = set()
    for key, neighbours in groupby(members, key=lambda member: member[0]):
        pending: dict[str, bytes] = {}
        groups = [pending]
        for _, extension, data in neighbours:
            if extension.lower() in pending:
                pending = {}
                groups.append(pending)
            pending[extension.lower()] = data
        for group in groups:
            name = key
            while name in keys:
                name = f"{name}@{len(rows)}"
            rows.append(_Expected(name, group, is_first=name == key))
            keys.add(name)
    return rows


@examples(120)
@given(names=MEMBERS)
def test_rows_are_those_of_a_plain_reference(names: list[tuple[str, str]]):
    members = [(key, ext, str(index).encode()) for index, (key, ext) in enumerate(names)]
    rows = read(pack([Entry(f"{key}.{ext}", data) for key, ext, data in members]))
    expected = reference(members)
    assert [row.key for row in rows] == [row.key for row in expected]
    assert len({row.key for row in rows}) == len(rows)
    for row, want in zip(rows, expected, strict=True):
        image = want.members.get("jpg", want.members.get("png"))
        reason = "bad_schema" if not want.is_first else "ok" if image else "missing"
        assert outcome(row)[1] == reason
        if reason == "ok":
            text = want.members.get("txt")
            cls = want.members.get("cls")
            assert row.image == image
            assert row.values == (
                None if cls is None else int(cls),
                None if text is None else text.decode(),
            )


# ---------------------------------------------------------------------------- rows that fail


@pytest.mark.parametrize(
    ("entries", "expected", "words"),
    [
        (files(a__txt=b"x", a__cls=b"1"), [("a", "missing")], "no image member; the key has txt"),
        (files(a__jpg=bytes(2001)), [("a", "too_large")], "2001 bytes, the limit is 2000"),
        (files(a__jpg=b"", b__jpg=b"x"), [("a", "ok"), ("b", "ok")], ""),
        (files(a__jpg=b"x", a__cls=b"1.5"), [("a", "bad_schema")], "a.cls: is not a whole number"),
        (files(a__jpg=b"x", a__cls=b"9" * 19), [("a", "bad_schema")], "64 bits"),
        (files(a__jpg=b"x", a__cls=b"9" * 999), [("a", "bad_schema")], "64 bits"),
        (files(a__jpg=b"x", a__cls=b" -12\n"), [("a", "ok")], ""),
        (files(a__jpg=b"x", a__txt=b"\xff"), [("a", "bad_schema")], "not text in UTF-8, at byte 0"),
        (files(a__jpg=b"x", a__txt=bytes(MAX_VALUE_BYTES + 1)), [("a", "too_large")], "a.txt"),
        (
            files(a__jpg=b"x", b__jpg=b"y") + files(a__jpg=b"z", c__jpg=b"w"),
            [("a", "ok"), ("b", "ok"), ("a@2", "bad_schema"), ("c", "ok")],
            "key a comes a second time",
        ),
        (
            files(a__jpg=b"x") + files(a__jpg=b"y", a__txt=b"t"),
            [("a", "ok"), ("a@1", "bad_schema")],
            "key a comes a second time",
        ),
        ([Entry("/etc/a.jpg", b"x")], [("/etc/a", "bad_schema")], "points out of the archive"),
        ([Entry("../a.jpg", b"x")], [("../a", "bad_schema")], "points out of the archive"),
        ([Entry("../shadow", b"x")], [("../shadow", "bad_schema")], "points out of the archive"),
        ([Entry("b/../../a.jpg", b"x")], [("b/../../a", "bad_schema")], "points out of the"),
        (
            [Entry("a.jpg", member_type=tarfile.SYMTYPE, target="/etc/passwd")],
            [("a", "bad_schema")],
            "a.jpg is a symbolic link",
        ),
        (
            [*files(b__jpg=b"x"), Entry("a.jpg", member_type=tarfile.LNKTYPE, target="b.jpg")],
            [("b", "ok"), ("a", "bad_schema")],
            "--hard-dereference",
        ),
        (
            [*files(a__jpg=b"x"), Entry("a.txt", member_type=tarfile.SYMTYPE, target="b.txt")],
            [("a", "bad_schema")],
            "a.txt is a symbolic link",
        ),
        ([Entry("a.jpg", member_type=tarfile.CHRTYPE)], [("a", "bad_schema")], "is a device"),
        ([Entry("a.jpg", member_type=tarfile.BLKTYPE)], [("a", "bad_schema")], "is a device"),
        ([Entry("a.jpg", member_type=tarfile.FIFOTYPE)], [("a", "bad_schema")], "is a fifo"),
        (
            [Entry("a.jpg", b"x" * 600, member_type=b"M")],
            [("a", "bad_schema")],
            "unknown type b'M'",
        ),
        (
            [Entry("GNUSparseFile.1/a.jpg", b"x", pax={"GNU.sparse.name": "a.jpg"})],
            [("a", "bad_schema")],
            "is a sparse file",
        ),
        (
            [Entry("a.jpg", b"x", member_type=tarfile.GNUTYPE_SPARSE)],
            [("a", "bad_schema")],
            "sparse",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_a_row_is_a_row_with_a_reason(
    entries: list[Entry], expected: list[tuple[str, str]], words: str
):
    after = Entry("zz/after.jpg", FIRST)
    rows = read(pack([*entries, after]))
    assert [outcome(row) for row in rows] == [*expected, ("zz/after", "ok")]
    assert rows[-1].image == FIRST
    assert any(words in row.failure.message for row in rows if row.failure) == bool(words)
    assert all(row.image is None and row.values == () for row in rows if row.failure)
    assert all(row.failure.stage == "read" for row in rows if row.failure)


def test_a_sparse_map_that_goes_on_is_passed_over():
    header = bytearray(Entry("a.jpg", b"", member_type=tarfile.GNUTYPE_SPARSE).to_bytes(1, "utf-8"))
    header[482] = 1
    going_on = bytes(504) + b"\1" + bytes(7)
    data = with_checksum(bytes(header)) + going_on + bytes(BLOCK_BYTES)
    assert outcomes(data + pack(files(b__jpg=b"x"))) == [("a", "bad_schema"), ("b", "ok")]


def test_a_member_that_is_too_large_is_not_read():
    handle = CountingFile(pack(files(a__jpg=bytes(10_000_000), a__cls=b"1", b__jpg=FIRST)))
    size = len(handle.getvalue())
    rows = list(iter_rows(handle, SPEC, size_bytes=size))
    assert [outcome(row) for row in rows] == [("a", "too_large"), ("b", "ok")]
    assert rows[0].failure is not None
    assert rows[0].failure.num_bytes == 10_000_000
    assert handle.read_bytes < 10_000


def test_rows_that_are_not_wanted_are_not_read():
    names = [f"{index:03d}" for index in range(100)]
    data = pack([Entry(f"{name}.jpg", bytes(1900)) for name in names])
    handle = CountingFile(data)
    rows = list(iter_rows(handle, SPEC, size_bytes=len(data), is_wanted=lambda row: row == 70))
    assert [row.key for row in rows] == names
    assert [row.key for row in rows if row.image is not None] == ["070"]
    assert handle.read_bytes < 100 * (BLOCK_BYTES + 2) + 1900 + END_BYTES + 100


# ---------------------------------------------------------------------------- broken archives

WHOLE = pack(files(a__jpg=FIRST, a__cls=b"1", b__txt=b"t", b__jpg=FIRST, c__jpg=SECOND))


def test_an_archive_that_is_cut_anywhere_keeps_the_rows_before():
    whole = read(WHOLE)
    # A row is safe when the next key has begun: until then a member of its own may follow.
    safe = {"a": 6 * BLOCK_BYTES, "b": 11 * BLOCK_BYTES, "c": len(WHOLE) - END_BYTES + 1}
    cuts = range(len(WHOLE) - END_BYTES + 1)
    beside = {end + step for end in range(0, cuts[-1], BLOCK_BYTES) for step in (-1, 0, 1)}
    for cut in sorted({*cuts[::17], *cuts[-2:], *beside} & {*cuts}):
        rows = read(WHOLE[:cut])
        assert outcome(rows[-1]) == (None, "unreadable_shard")
        kept = [row for row in rows if row.failure is None]
        assert kept == whole[: len(kept)]
        others = rows[len(kept) : -1]
        assert [outcome(row)[1] for row in others] in ([], ["truncated"])
        for row in whole:
            assert row.key is not None
            assert (row in kept) == (safe[row.key] <= cut)
    for cut in range(len(WHOLE) - END_BYTES + BLOCK_BYTES, len(WHOLE), 17):
        assert read(WHOLE[:cut]) == whole  # one of the two zero blocks is enough


def test_a_row_whose_values_may_be_lost_is_no_good_row():
    """Otherwise it would be published with a null that the complete archive does not have."""
    image_bytes = BLOCK_BYTES + 2 * BLOCK_BYTES
    assert outcomes(WHOLE[: image_bytes + 100])[0] == ("a", "truncated")
    spec = TarSpec(("jpg",), (), 2000)
    assert outcomes(WHOLE[: image_bytes + 100], spec)[0] == ("a", "ok")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"x", "truncated: the archive ends inside a header"),
        (b"<!doctype html>" * 1000, "not a tar archive"),
        (random.Random(1).randbytes(20_000), "not a tar archive"),
        (b"BZh91AY&SY" + bytes(500), "compressed tar (bzip2) of 510 bytes: recompress as plain"),
        (b"\xfd7zXZ\x00" + bytes(500), "compressed tar (xz)"),
        (b"\x28\xb5\x2f\xfd" + bytes(500), "damaged zstd"),
        (gzip.compress(b"not a tar" * 999, mtime=0), "not a tar archive"),
        (b"\x1f\x8b" + bytes(500), "damaged gzip"),
    ],
)
def test_what_is_no_archive_is_one_row(data: bytes, words: str):
    (row,) = read(data)
    assert outcome(row) == (None, "unreadable_shard")
    assert row.failure is not None
    assert words in row.failure.message
    assert row.failure.num_bytes == len(data)


def broken_header(**changes: tuple[int, bytes]) -> bytes:
    """Return a plain file's header with other bytes at an offset and a valid checksum."""
    header = bytearray(Entry("x.jpg", b"x").to_bytes(tarfile.GNU_FORMAT, "utf-8")[:BLOCK_BYTES])
    for offset, value in changes.values():
        header[offset : offset + len(value)] = value
    return with_checksum(bytes(header))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (random.Random(2).randbytes(BLOCK_BYTES), "damaged header before byte"),
        (broken_header(size=(124, b"\xff" * 12)), "damaged header"),  # -1
        (broken_header(size=(124, b"\x80" + b"\xff" * 11)), "damaged header"),  # 2 ** 88
        (broken_header(kind=(156, b"L"), size=(124, b"77777777777\0")), "damaged header"),
        (broken_header(kind=(156, b"x"), size=(124, b"\xff" * 12)), "damaged header"),
        (broken_header(kind=(156, b"x")) + b"1" + bytes(511), "without an end mark"),
        (broken_header(kind=(156, b"L")), "without an end mark"),
        (broken_header(kind=(156, b"L")) + bytes(BLOCK_BYTES + END_BYTES), "damaged header"),
    ],
    ids=range(8),
)
def test_a_broken_header_costs_what_comes_after_and_is_said(bad: bytes, words: str):
    data = pack(files(a__jpg=FIRST, a__txt=b"t", a__cls=b"1", b__jpg=SECOND), end=False)
    rows = read(data + bad)
    expected = [("a", "ok"), ("b", "truncated"), (None, "unreadable_shard")]
    assert [outcome(row) for row in rows] == expected
    assert rows[-1].failure is not None
    assert words in rows[-1].failure.message


A_ROW = files(a__jpg=FIRST, a__cls=b"1", a__txt=b"t")
LONG_NAME = Entry("a", b"n\0", member_type=tarfile.GNUTYPE_LONGNAME)


@pytest.mark.parametrize(
    ("data", "expected", "words"),
    [
        (pack(A_ROW, end=False), [("a", "ok")], "without an end mark"),
        (pack(A_ROW) + pack(files(b__jpg=FIRST)), [("a", "ok")], "data after the end of the arch"),
        (
            pack(A_ROW, end=False) + broken_header(size=(124, b"77777777777\0")) + bytes(99_999),
            [("a", "ok"), ("x", "truncated")],
            "truncated",
        ),
        (LONG_NAME.to_bytes(tarfile.GNU_FORMAT, "utf-8") * 5000 + pack(A_ROW), [], "header"),
    ],
    ids=["no end mark", "more behind it", "a member beyond the end", "headers without a member"],
)
def test_an_archive_that_does_not_end_well_may_have_lost_rows(
    data: bytes, expected: list[tuple[str, str]], words: str
):
    rows = read(data)
    assert [outcome(row) for row in rows] == [*expected, (None, "unreadable_shard")]
    assert rows[-1].failure is not None
    assert words in rows[-1].failure.message


# ---------------------------------------------------------------------------- gzip


def test_a_compressed_archive_reads_like_a_plain_one():
    assert read(gzip.compress(WHOLE)) == read(WHOLE)
    assert read(pa.compress(WHOLE, "zstd", asbytes=True)) == read(WHOLE)
    half = gzip.compress(WHOLE[:3000]) + gzip.compress(WHOLE[3000:])
    assert read(half) == read(WHOLE)
    cut = read(gzip.compress(WHOLE[:3000]))
    assert [outcome(row) for row in cut] == [outcome(row) for row in read(WHOLE[:3000])]


# ---------------------------------------------------------------------------- which rows are wanted


def damaged(data: bytes, draw: Any) -> bytes:
    """Flip bytes, drop or repeat blocks, and truncate."""
    mutable = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        mutable[draw(st.integers(0, len(mutable) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        first = draw(st.integers(0, len(mutable) // BLOCK_BYTES)) * BLOCK_BYTES
        del mutable[first : first + BLOCK_BYTES]
    return bytes(mutable[: draw(st.integers(0, len(mutable)))] if draw(st.booleans()) else mutable)


@examples(120)
@given(names=MEMBERS, data=st.data(), is_gzip=st.booleans())
def test_any_bytes_give_rows_and_the_same_ones_whichever_are_wanted(
    names: list[tuple[str, str]], data: st.DataObject, is_gzip: bool
):
    sizes = st.integers(0, 2300)
    entries = [Entry(f"{key}.{ext}", b"7" * data.draw(sizes)) for key, ext in names]
    archive = damaged(pack(entries), data.draw)
    archive = gzip.compress(archive) if is_gzip else archive
    whole = read(archive)
    keys = [row.key for row in whole]
    assert len(set(keys)) == len(keys)
    assert None not in keys[:-1]
    wanted = data.draw(st.sets(st.integers(0, max(1, len(whole)))))
    some = read(archive, is_wanted=lambda row: row in wanted)
    assert [(row.key, row.num_bytes) for row in some] == [(row.key, row.num_bytes) for row in whole]
    for index in wanted & set(range(len(whole))):
        assert some[index] == whole[index]
