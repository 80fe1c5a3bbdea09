"""The table of formats keeps the order in which a row of a tar chooses its member."""

from __future__ import annotations

from pipeline.core.media import DECODERS, ENCODED, FORMATS, accepted_images


def test_usual_suffixes_come_before_rare_ones():
    images = "jpg jpeg png webp gif bmp tif tiff avif heic heif jpe jfif"
    assert ENCODED["image"].extensions == tuple(images.split())
    assert ENCODED["audio"].extensions == ("wav", "flac", "mp3", "ogg", "opus", "oga")


def test_messages_name_each_format_and_the_extra_that_it_needs():
    formats = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF and, with the extra heif, HEIC"
    assert accepted_images() == formats
    assert len({row.name for row in FORMATS}) == len(FORMATS)
    assert set(DECODERS) == {"pillow", "pillow-heif", "soundfile"}
