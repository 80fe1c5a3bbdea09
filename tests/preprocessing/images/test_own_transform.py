"""Test the user's own transform: its input, its allowed results, and the cost of its errors."""

from __future__ import annotations

import hashlib
import importlib
from typing import Any

import numpy as np
import own_transforms
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support.inputs.encoded import base_image, encode
from support.runs.checkout import ROOT

from pipeline.core.arrays import images_from_arrow
from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.figures import Counters
from pipeline.preprocessing.images.decode_image import DecodeLimits, decode_image
from pipeline.preprocessing.images.image_rows import preprocess
from pipeline.preprocessing.images.own_transform import load_step, try_step
from pipeline.preprocessing.images.transform import TransformSpec

SIZE_PX = own_transforms.SIZE_PX
LIMITS = DecodeLimits(10**7, 10**6)
SIZES = [(60, 40), (33, 90), (32, 32), (200, 50), (31, 47)]


def spec_of(
    factory: str, size_px: Any = SIZE_PX, num_channels: int = 3, **args: Any
) -> TransformSpec:
    plain = (0.0,) * num_channels, (1.0,) * num_channels
    return TransformSpec(
        size_px, None, None, *plain, factory=f"own_transforms:{factory}", args=args
    )


def photos() -> list[bytes]:
    return [encode(base_image(row).resize(size), "PNG") for row, size in enumerate(SIZES)]


def rows_of(encoded: list[bytes]) -> pa.Table:
    ids = pa.array([f"r{row}" for row in range(len(encoded))])
    columns = {"row_id": ids, "uri": ids, "image": pa.array(encoded, pa.large_binary())}
    return pa.table({**columns, **failure_columns([None] * len(encoded))})


def prepared(spec: TransformSpec, encoded: list[bytes], num_threads: int = 1) -> pa.Table:
    return preprocess(rows_of(encoded), Counters(), LIMITS, spec, num_threads)


def messages(spec: TransformSpec, encoded: list[bytes]) -> list[tuple[str, str, str]]:
    rows = prepared(spec, encoded)
    return list(
        zip(*(rows.column(c).to_pylist() for c in ("error", "error_stage", "message")), strict=True)
    )


@pytest.mark.parametrize(
    ("factory", "channels", "args"),
    [
        ("composed", 3, {}),
        ("composed", 1, {"channels": 1}),
        ("squeezed", 3, {"size_px": SIZE_PX}),
        ("four_channels", 4, {}),
    ],
)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_model_sees_what_the_callable_makes_of_the_decoded_image(
    factory: str, channels: int, args: dict[str, Any], num_threads: int
):
    spec, encoded = spec_of(factory, num_channels=channels, **args), photos()
    rows = prepared(spec, encoded, num_threads)
    assert rows.column("error").null_count == len(encoded)
    images = images_from_arrow(rows.column("image"), (SIZE_PX, SIZE_PX, channels))
    step = load_step(f"own_transforms:{factory}", args)
    for data, image in zip(encoded, images, strict=True):
        expected = step(decode_image(data, LIMITS))
        assert np.array_equal(image, expected.permute(1, 2, 0).numpy())


def test_sizes_are_those_of_the_decoded_images_and_places_are_unknown():
    rows = prepared(spec_of("composed"), photos())
    sizes = zip(*(rows.column(name).to_pylist() for name in ("width_px", "height_px")), strict=True)
    assert list(sizes) == SIZES
    assert rows.column("_geometry").null_count == len(SIZES)


def test_memory_that_the_callable_uses_again_is_copied():
    rows = prepared(spec_of("reused"), photos())
    images = images_from_arrow(rows.column("image"), (SIZE_PX, SIZE_PX, 3))
    assert len({image.tobytes() for image in images}) == len(SIZES)


def test_it_is_made_once_in_a_process_for_each_thread_that_decodes():
    own_transforms.calls.clear()
    spec = spec_of("counted", number=7, names=["a", "b"])
    for _ in range(3):
        prepared(spec, photos())
    assert own_transforms.calls == [{"number": 7, "names": ["a", "b"]}]
    prepared(spec, photos(), num_threads=2)
    assert len(own_transforms.calls) == 2


@pytest.mark.parametrize(
    ("fault", "returned"),
    [
        *(("none", "builtins.NoneType"), ("array", "numpy.ndarray"), ("pil", "PIL.Image")),
        *(("float", "float32 (3, "), ("int64", "int64 (3, "), ("batch", "uint8 (1, 3, 40, 60)")),
        *(("plane", "uint8 (40, 60)"), ("last", "uint8 (40, 60, 3)")),
        *(("gray", "uint8 (1, 40, 60)"), ("empty", "uint8 (3, 0, 60)"), ("small", "uint8 (3, 5, ")),
    ],
)
def test_what_it_returns_is_checked_and_the_message_says_what_is_right(fault: str, returned: str):
    [(error, stage, message)] = messages(spec_of("returning", fault=fault), photos()[:1])
    assert (error, stage) == ("decode_error", "transform")
    assert message.startswith(f"transform.factory own_transforms:returning: returned {returned}")
    assert ", expected a uint8 tensor (3, 32, 32) on the CPU: one image, channels first" in message


def test_an_exception_costs_its_row_and_keeps_the_users_words():
    black = encode(Image.new("RGB", (40, 40)), "PNG")
    outcomes = messages(spec_of("fussy"), [photos()[0], black, photos()[1]])
    assert [error for error, _, _ in outcomes] == [None, "decode_error", None]
    assert outcomes[1][2].startswith(
        "transform.factory own_transforms:fussy: ValueError: nothing to see (own_transforms.py line"
    )
    [digest] = prepared(spec_of("fussy"), [black]).column("sha256").to_pylist()
    assert digest == hashlib.sha256(black).hexdigest()


def test_lack_of_memory_is_named_as_such():
    white = encode(Image.new("RGB", (40, 40), (255, 255, 255)), "PNG")
    [(error, stage, message)] = messages(spec_of("starved"), [white])
    assert (error, stage) == ("out_of_memory", "transform")
    assert "MemoryError: asked for too much" in message


@pytest.mark.parametrize(
    ("factory", "args", "words"),
    [
        ("own_transforms:no_factory", {}, "must return a callable over an image, .*returned int"),
        (
            "own_transforms:broken",
            {},
            r"failed: OSError: no licence \(own_transforms.py line \d+\)",
        ),
        ("own_transforms:whole", {}, r"is a transform itself \(Resize\); name a function that ret"),
        (
            "own_transforms:squeezed",
            {"size": 3},
            r"unexpected keyword argument 'size', with those of transform\.args",
        ),
        ("own_transforms:missing", {}, "own_transforms has no callable missing"),
        ("no_such_module:make", {}, "cannot import: ModuleNotFoundError"),
    ],
)
def test_a_factory_that_cannot_be_used_is_an_error_of_the_job(
    factory: str, args: dict[str, Any], words: str
):
    with pytest.raises(JobError, match=words) as caught:
        load_step(factory, args)
    assert str(caught.value).startswith("transform.factory ")
    assert "\n" not in str(caught.value)


def test_images_of_their_own_sizes_are_copied_as_they_are():
    spec, encoded = spec_of("halved", size_px=None), [*photos(), b"no image"]
    rows = prepared(spec, encoded)
    heights, widths = (rows.column(f"_image_{side}_px").to_pylist() for side in ("height", "width"))
    assert list(zip(widths, heights, strict=True)) == [
        *((-(-width // 2), -(-height // 2)) for width, height in SIZES),
        (None, None),
    ]
    assert rows.column("image").type == pa.large_binary()
    assert rows.column("image").null_count == 1
    for data, pixels, height, width in zip(
        encoded[:-1], rows.column("image").to_pylist(), heights, widths, strict=False
    ):
        expected = decode_image(data, LIMITS)[:, ::2, ::2].permute(1, 2, 0).numpy()
        shape = (height, width, 3)
        assert np.array_equal(np.frombuffer(pixels, np.uint8).reshape(shape), expected)


def test_a_result_of_too_many_pixels_is_refused():
    limits = DecodeLimits(10**7, 60 * 40)
    spec = spec_of("larger", size_px=None)
    rows = preprocess(rows_of(photos()[:1]), Counters(), limits, spec)
    assert rows.column("error").to_pylist() == ["too_large"]
    assert "returned (3, 80, 120), 9600 px, allowed are 2400" in rows.column("message")[0].as_py()


def test_a_generated_image_shows_what_comes_out():
    what = "a generated image of 320 x 240 px"
    assert try_step(spec_of("composed")) == (
        f"ok: own_transforms:composed makes (3, 32, 32) of {what}"
    )
    assert try_step(spec_of("refusing")).startswith(
        f"warn: of {what}: transform.factory own_transforms:refusing: KeyError: 'no such lens'"
    )


def test_the_transform_evens_contrast_and_keeps_the_whole_image(
    monkeypatch: pytest.MonkeyPatch,
):
    """That of examples/custom_transform."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "custom_transform")
    module = importlib.import_module("custom_transform")
    transform = module.even_letterbox(224, limit=4.0)
    dark = torch.arange(40).repeat(300, 20)[None].repeat(3, 1, 1).to(torch.uint8)  # 300 x 800 px
    image = transform(dark)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 224, 224))
    assert (image[:, :70] == 114).all()
    assert (image[:, 154:] == 114).all()
    inside = image[:, 70:154]
    assert int(inside.max()) > 100, "brighter than any of its pixels were"
    assert torch.equal(inside[0], inside[2]), "gray stays gray"
    same = module.EvenContrast(1.0)(dark)
    assert (same.float() - dark.float()).abs().max() <= 256 / 2
    plain = torch.full((3, 50, 224), 77, dtype=torch.uint8)
    assert torch.equal(module.Letterbox(224, 9)(plain)[:, 87:137], plain)
