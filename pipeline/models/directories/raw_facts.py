"""Facts of directories of transformers whose outputs are columns of task `raw` as they are.

Any class of the library runs whose rows are one text, a pair of texts, one image or one clip. The
outputs have the names of the class's own; their shapes are seen where it runs without numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.directories.audio_facts import read_extractor
from pipeline.models.directories.facts import RAW, DirectoryFacts
from pipeline.models.directories.files import CONFIG
from pipeline.models.directories.image.image_facts import images_of
from pipeline.models.directories.image.image_transform import read_transform
from pipeline.models.directories.library import load, refused
from pipeline.models.directories.model_class import ModelClass, run_once
from pipeline.models.directories.text.text_facts import text_notes, text_of
from pipeline.models.outputs import FRAMES, TOKENS, OutputSpec, in_words
from pipeline.preprocessing.texts.text_settings import IDS, MASK

if TYPE_CHECKING:
    import torch

_ROWS = 3
_TOKENS = (6, 9)
_SECONDS = (1.0, 1.5)


def raw_facts(folder: Path, chosen: ModelClass) -> DirectoryFacts:
    """Read the facts of a class for task `raw`.

    Raises:
        JobError: The directory is refused.
    """
    fields: dict[str, Any]
    notes: tuple[str, ...]
    shapes: Sequence[tuple[int, ...]] = ()
    if chosen.takes_audio:
        name = "audio"
        audio, note = read_extractor(folder, chosen)
        fields, notes = {"audio": audio}, (note,)
        lengths = [(int(audio.sample_rate_hz * length_s),) for length_s in _SECONDS]
        shapes = [audio.shape] * 2 if audio.shape else lengths
    elif chosen.takes_text:
        name = "text"
        text = text_of(folder, chosen.at, chosen.module, has_pairs=True)
        fields, notes = {"text": text}, text_notes(text)
        shapes = [(length,) for length in _TOKENS]
    else:
        name, images = "image", images_of(chosen)
        transform, problem, note = read_transform(folder, chosen.at, images.num_channels)
        fields = {"transform": transform, "transform_problem": problem, "images": images}
        notes = (note,)
        if transform is not None and transform.has_one_size:
            shapes = [(images.num_channels or 3, transform.height_px, transform.width_px)] * 2
    outputs = _outputs_of(
        [_run(folder, chosen, shape, is_flat=not number) for number, shape in enumerate(shapes)],
        _TOKENS if chosen.takes_text else (),
        has_frames=chosen.takes_audio,
    )
    return chosen.directory(
        name,
        (RAW,),
        outputs=outputs,
        notes=(f"{CONFIG}: {chosen.built.__name__}, {in_words(outputs)}", *notes),
        **fields,
    )


def _run(folder: Path, chosen: ModelClass, shape: tuple[int, ...], *, is_flat: bool) -> Any:
    """Run a class without numbers, or with them if it cannot; raises as `raw_facts`."""
    import torch

    with torch.device("meta"):
        outputs = run_once(chosen.module, _inputs(chosen, shape, is_flat=is_flat))
    if isinstance(outputs, Exception):
        module = load(chosen.built, chosen.config, folder / chosen.at, chosen.absent)
        outputs = run_once(module, _inputs(chosen, shape, is_flat=is_flat))
    if isinstance(outputs, Exception):
        what = f"cannot run {chosen.built.__name__} on {chosen.built.main_input_name} alone"
        raise refused(outputs, what) from outputs
    return outputs


def _inputs(
    chosen: ModelClass, shape: tuple[int, ...], *, is_flat: bool
) -> dict[str, torch.Tensor]:
    """Return rows of a shape: images and clips of one value, or waves, as shapes may depend on it.

    SuperPoint gives as many keypoints as an image has.
    """
    import torch

    if chosen.takes_text:
        ids = torch.zeros(_ROWS, *shape, dtype=torch.int64)
        return {IDS: ids, MASK: torch.ones_like(ids)}
    values = torch.arange(_ROWS * math.prod(shape)).reshape(_ROWS, *shape).sin()
    return {chosen.built.main_input_name: values.mul(not is_flat)}


def _outputs_of(
    results: Sequence[Any], lengths: Sequence[int], *, has_frames: bool
) -> tuple[OutputSpec, ...]:
    """Return the outputs that have one shape for each row, or places for its tokens or frames.

    Args:
        lengths: The tokens of the rows of each result; (): they are no texts.
        has_frames: Whether a first axis that varies is the frames of a clip.
    """
    shapes = [_shapes(outputs) for outputs in results]
    first = shapes[0] if shapes else {}
    specs = []
    for name, shape in first.items():
        seen = [other.get(name, ()) for other in shapes]
        if len(set(seen)) == 1:
            specs.append(OutputSpec(name, shape))
        elif [shape[:1] for shape in seen] == [(length,) for length in lengths]:
            specs.append(OutputSpec(name, (TOKENS, *shape[1:])))
        elif has_frames and len({(len(shape), *shape[1:]) for shape in seen}) == 1:
            specs.append(OutputSpec(name, (FRAMES, *shape[1:])))
    return (*specs,)


def _shapes(outputs: Any) -> Mapping[str, tuple[int, ...]]:
    return {
        name: tuple(value.shape[1:])
        for name, value in outputs.items()
        if getattr(value, "shape", ())[:1] == (_ROWS,)
    }
