"""The boxes of the library for an image: of a detector's labels, or of each of a job's prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.schema import DETECTIONS, LABEL, LABEL_ID, SCORE
from pipeline.models.directories.image.image_transform import image_processor
from pipeline.models.tasks.base import TaskSpec
from pipeline.models.tasks.detect import CORNERS


def of_detector(
    path: Path, model: Any, task: TaskSpec
) -> Callable[[Sequence[Any]], Mapping[str, Any]]:
    """Return what gives the column of task `detect`, as the library's pipelines do.

    Args:
        path: The folder of the image processor, and of the tokenizer of prompts.
        model: The library's detector.

    Returns:
        Takes normalised pixels, float32 (1, C, H, W), and the height and width of the image in px.
    """
    from transformers import AutoTokenizer

    processor, texts = image_processor(path), list[Any]([{}])
    if task.prompts:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        texts = [tokenizer(prompt, return_tensors="pt") for prompt in task.prompts]

    def predict(row: Sequence[Any]) -> Mapping[str, Any]:
        pixels, *size_px = row
        most = dict(zip(CORNERS, size_px[::-1] * 2, strict=True))
        entries = []
        for prompt, text in enumerate(texts):
            outputs = model(pixel_values=pixels, **text)
            [detected] = processor.post_process_object_detection(
                outputs, threshold=task.min_score, target_sizes=[tuple(size_px)]
            )
            columns = (detected[name].tolist() for name in ("labels", "scores", "boxes"))
            for label, score, box in zip(*columns, strict=True):
                place = prompt if task.prompts else label
                name = task.labels[place] if task.prompts else model.config.id2label[label]
                corners = {side: min(max(0, px), most[side])
                           for side, px in zip(CORNERS, box, strict=True)}  # fmt: skip
                entries.append({LABEL: name, LABEL_ID: place, SCORE: score, **corners})
        best_first = sorted(entries, key=lambda entry: -entry[SCORE])
        return {DETECTIONS: best_first[: task.max_detections]}

    return predict
