"""Predict a few rows by a directory's own library: each row alone, unpadded, by its own pipelines.

What an .onnx file predicts is in `onnx_predictions.py`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.core.schema import (
    EMBEDDING,
    EMBEDDINGS,
    END,
    ENTITIES,
    ENTITY_TEXT,
    LABEL,
    LABEL_ID,
    LABELS,
    SCORE,
    START,
    TEXT,
    TEXT_PAIR,
    TOKEN_ID,
    TOP_K,
    VALUE,
    WEIGHT,
    WEIGHTS,
)
from pipeline.models.directories import probes
from pipeline.models.directories.facts import (
    PROMPTED,
    TOWERS,
    DirectoryFacts,
    LibraryClass,
    TimmModel,
)
from pipeline.models.directories.image.detector_predictions import of_detector
from pipeline.models.directories.image.timm_models import is_read_by_timm
from pipeline.models.directories.text.tokens import load_tokenizer, special_tokens
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.audio.decode_clip import decode_clip, resampled
from pipeline.preprocessing.images.geometry import made_px
from pipeline.preprocessing.images.image_input import ImageInput

_MOST_TOKENS = 1_024
"""Longest probe, about, for models that take more: each token takes time."""
_MOST_PX = 1 << 17
"""Pixels of all probes together: two of 224 x 224 px take a ViT-B a second each way."""
_MOST_BYTES, _LONG_S = 1 << 30, 3_600.0
_CONTINUED = (0, 1, 4, 5)
"""Texts that are continued: without special tokens, which stay text here, and short ones."""
_FUNCTIONS = {"classify": "softmax", "multilabel": "sigmoid", "regress": "none"}
"""Task -> what the library's pipelines apply to the logits of a classifier."""
_CLIP_VECTORS = {"pooler": "pooler_output", "projection": "audio_embeds"}
"""Pooling -> the output that has the vector of a clip; of others it is the mean."""
_LOCAL: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}

Row = Mapping[str, Any]
"""Columns as they are published, or as golden rows have them."""
Predict = Callable[[Sequence[Any]], Row]


def text_probes(path: Path, spec: ModelSpec) -> dict[str, Sequence[str]]:
    """Return probes of texts, or of pairs: a column of each text."""
    text = spec.facts.text if spec.facts else None
    assert text is not None, "its rows are texts"
    special = special_tokens(load_tokenizer(path / text.tokenizer, text.overlay))
    most = min(text.max_tokens, _MOST_TOKENS)
    if spec.input.text is not None and spec.input.text.has_pair:
        first, second = zip(*probes.pairs(special, most), strict=True)
        return {TEXT: first, TEXT_PAIR: second}
    texts = probes.texts(special, most)
    if spec.task.kind == "zero_shot" and spec.facts and spec.facts.labels is not None:
        # The library cuts a long text for each prompt; here all prompts see the same text.
        texts = texts[:-1]
    return {TEXT: texts if spec.task.generation is None else [texts[n] for n in _CONTINUED]}


def image_probes(spec: ModelSpec) -> tuple[bytes, ...]:
    """Return four encoded images, or as many as are few enough pixels to the model."""
    assert isinstance(spec.input, ImageInput), "its rows are images"
    chosen: list[bytes] = []
    num_px = 0
    for data in probes.images():
        with Image.open(io.BytesIO(data)) as image:
            num_px += made_px(spec.input.transform, *image.size)
        if chosen and num_px > _MOST_PX:
            break
        chosen.append(data)
    return (*chosen,)


def library_predictions(
    path: Path, facts: DirectoryFacts, task: TaskSpec, rows: Sequence[Sequence[Any]]
) -> list[Row | None] | None:
    """Return the columns of a task for some rows.

    Args:
        rows: Texts or pairs of texts; encoded clips, which are cut to the model's limit; or
            for each image the normalised pixels, float32 (1, C, H, W), and the height and width in
            px of the image itself. The pixels are ours, which are compared with the library's when
            facts are read: the two round differently, and some models amplify that.

    Returns:
        A row each; None for one over which the library fails. None instead of a list: the library
        does not do this task.

    Raises:
        JobError: The library fails over each row.
    """
    import torch

    if task.kind == "score" and len(rows[0]) < len((TEXT, TEXT_PAIR)):
        return None  # it scores pairs
    ways = {"audio": _of_clips, "image": _of_images, "text": _of_texts}
    predict = ways[facts.input](path, facts, task)
    if predict is None:
        return None
    results: list[Row | None] = [None] * len(rows)
    errors = []
    # The first text may decide how a model computes from then on: a short one does in BigBird.
    lengths = [sum(len(text) for text in row if isinstance(text, str)) for row in rows]
    for place in sorted(range(len(rows)), key=lambda row: -lengths[row]):
        try:
            with torch.inference_mode():
                results[place] = predict(rows[place])
        except Exception as error:  # noqa: BLE001  # the library fails over rows in many ways
            errors.append(clean_message(f"{type(error).__name__}: {error}", 200))
    if len(errors) == len(rows):
        raise JobError(f"model.path: its library fails over each probe: {errors[0]}")
    return results


def _pipeline(name: str, path: Path, **options: Any) -> Any:
    import torch
    from transformers import pipeline

    given = {"model": str(path), "device": "cpu", "dtype": torch.float32, **options}
    return pipeline(name, **given)


def _model(path: Path, facts: LibraryClass) -> Any:
    import torch
    import transformers

    cls = getattr(transformers, facts.built)
    return cls.from_pretrained(path / facts.at, dtype=torch.float32, **_LOCAL).eval()


def _labelled(task: TaskSpec, scores: Iterable[tuple[str, float]]) -> Row:
    """Return the columns of task `classify`, `multilabel` or `zero_shot` of all labels' scores."""
    best_first = sorted(scores, key=lambda pair: -pair[1])
    entries = [
        {LABEL: label, LABEL_ID: task.labels.index(label), SCORE: score}
        for label, score in best_first
    ]
    return {LABELS: entries} if task.kind == "multilabel" else {**entries[0], TOP_K: entries}


def _entries(task: TaskSpec, entries: Iterable[Mapping[str, Any]]) -> Row:
    return _labelled(task, ((entry["label"], entry["score"]) for entry in entries))


def _vector(outputs: Any) -> Row:
    from pipeline.models.directories.image.image_modules import features

    return {EMBEDDING: features(outputs)[0].tolist()}


def _of_clips(path: Path, facts: DirectoryFacts, task: TaskSpec) -> Predict:
    audio = facts.audio
    assert audio is not None, "it takes clips"
    ways = {"embed": _clip_vectors, "transcribe": _clip_texts}
    predict_clip = ways.get(task.kind, _clip_classes)(path, facts, task)

    def predict_row(row: Sequence[bytes]) -> Row:
        clip = resampled(decode_clip(row[0], _MOST_BYTES, _LONG_S), audio.sample_rate_hz)
        return predict_clip(clip[: audio.max_samples])

    return predict_row


def _clip_classes(path: Path, facts: DirectoryFacts, task: TaskSpec) -> Callable[[Any], Row]:
    run = _pipeline("audio-classification", path, feature_extractor=str(path), top_k=None)
    return lambda clip: _entries(task, run(clip, function_to_apply=_FUNCTIONS[task.kind]))


def _clip_texts(path: Path, facts: DirectoryFacts, task: TaskSpec) -> Callable[[Any], Row]:
    files = {"feature_extractor": str(path), "tokenizer": str(path)}
    run = _pipeline("automatic-speech-recognition", path, **files)
    [column] = make_task(task).golden_columns()
    return lambda clip: {column: run(clip)["text"]}


def _clip_vectors(path: Path, facts: DirectoryFacts, task: TaskSpec) -> Callable[[Any], Row]:
    import transformers

    assert isinstance(facts.module, LibraryClass), "it is of transformers"
    model = _model(path, facts.module)
    extract = transformers.AutoFeatureExtractor.from_pretrained(path, **_LOCAL)
    output = _CLIP_VECTORS.get(facts.pooling.modes[0] if facts.pooling else "")

    def predict(clip: Any) -> Row:
        made = extract(clip, sampling_rate=extract.sampling_rate, return_tensors="pt")
        values = made[extract.model_input_names[0]].float()
        if facts.pooling is None:
            vectors = model.get_audio_features(values).pooler_output
        else:
            outputs = model(**{model.main_input_name: values})
            vectors = outputs[output] if output else outputs.last_hidden_state.mean(1)
        return {EMBEDDING: vectors[0].tolist()}

    return predict


def _of_images(path: Path, facts: DirectoryFacts, task: TaskSpec) -> Predict | None:
    from pipeline.models.directories.image.image_modules import ImageModule

    if isinstance(facts.module, TimmModel):
        return _of_timm(path, task) if is_read_by_timm(path) else None
    assert isinstance(facts.module, LibraryClass), "an .onnx file is held elsewhere"
    if facts.module.head == "image":
        return _of_image_classifier(path / facts.module.at, task)
    if task.kind == "zero_shot":
        return _of_image_prompts(path / facts.module.at, task)
    model = _model(path, facts.module)
    if facts.module.head in ("detection", PROMPTED):
        return of_detector(path / facts.module.at, model, task)
    if facts.module.head == TOWERS:
        return lambda row: _vector(model.get_image_features(pixel_values=row[0]))
    if facts.pooling is None:
        return None
    encoder = ImageModule(model, facts.pooling.modes[0])
    return lambda row: _vector(encoder(row[0]))


def _of_timm(path: Path, task: TaskSpec) -> Predict:
    import timm

    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()

    def predict(row: Sequence[Any]) -> Row:
        if task.kind == "embed":
            return _vector(model.forward_head(model.forward_features(row[0]), pre_logits=True))
        logits = model(row[0])[0]
        scores = logits.softmax(0) if task.kind == "classify" else logits.sigmoid()
        return _labelled(task, zip(task.labels, scores.tolist(), strict=True))

    return predict


def _of_image_classifier(path: Path, task: TaskSpec) -> Predict:
    run = _pipeline("image-classification", path)
    options = {"function_to_apply": _FUNCTIONS[task.kind], "top_k": run.model.config.num_labels}

    def predict(row: Sequence[Any]) -> Row:
        entries = run.postprocess(run.model(pixel_values=row[0]), **options)
        if task.kind == "regress":
            return {(*task.targets, VALUE)[0]: entries[0]["score"]}
        return _entries(task, entries)

    return predict


def _of_image_prompts(path: Path, task: TaskSpec) -> Predict:
    run = _pipeline("zero-shot-image-classification", path)
    labels = dict(zip(task.prompts, task.labels, strict=True))

    def predict(row: Sequence[Any]) -> Row:
        given = run.preprocess(Image.new("RGB", (64, 64)), [*labels], "{}")
        entries = run.postprocess(run.forward({**given, "pixel_values": row[0]}))
        return _labelled(task, ((labels[entry["label"]], entry["score"]) for entry in entries))

    return predict


def _of_texts(path: Path, facts: DirectoryFacts, task: TaskSpec) -> Predict | None:
    if task.kind == "score":
        return _scores(path)
    if task.kind == "sparse":
        return _weights(path)
    if task.kind == "multi_vector":
        return _token_vectors(path)
    if task.kind == "embed":
        if facts.format_name == "sentence_transformers":
            return _encode(path)
        assert isinstance(facts.module, LibraryClass), "an .onnx file is held elsewhere"
        return _text_tower(path, facts) if facts.module.head == TOWERS else _means(path, facts)
    if task.kind == "zero_shot":
        return None if facts.labels is None else _entailment(path, task)
    if task.kind == "tokens":
        return _entities(path, task)
    return _text_classes(path, facts, task)


def _text_classes(path: Path, facts: DirectoryFacts, task: TaskSpec) -> Predict:
    run = _pipeline("text-classification", path, top_k=None)
    # The library does the first task by default, but it makes a score of a number.
    is_default = task.kind == facts.tasks[0] and task.kind != "regress"
    options = {} if is_default else {"function_to_apply": _FUNCTIONS[task.kind]}

    def predict(row: Sequence[str]) -> Row:
        given = dict(zip(("text", "text_pair"), row, strict=False))
        entries = run(given, truncation=True, **options)
        if task.kind != "regress":
            return _entries(task, entries)
        values = {entry["label"]: entry["score"] for entry in entries}
        names = task.targets or (VALUE,)
        return {name: values[label] for name, label in zip(names, facts.labels or (), strict=True)}

    return predict


def _entailment(path: Path, task: TaskSpec) -> Predict:
    run = _pipeline("zero-shot-classification", path)

    def predict(row: Sequence[str]) -> Row:
        given = run(row[0], [*task.prompts], hypothesis_template="{}")
        return _labelled(task, zip(given["labels"], given["scores"], strict=True))

    return predict


def _entities(path: Path, task: TaskSpec) -> Predict:
    run = _pipeline("token-classification", path, aggregation_strategy=task.aggregation)

    def predict(row: Sequence[str]) -> Row:
        return {
            ENTITIES: [
                {
                    START: entity["start"],
                    END: entity["end"],
                    ENTITY_TEXT: row[0][entity["start"] : entity["end"]],
                    LABEL: entity["entity_group"],
                    SCORE: float(entity["score"]),
                }
                for entity in run(row[0])
            ]
        }

    return predict


def _scores(path: Path) -> Predict | None:
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        return None
    import torch

    model = CrossEncoder(str(path), device="cpu", local_files_only=True,
                         model_kwargs={"dtype": torch.float32})  # fmt: skip
    return lambda row: {SCORE: float(model.predict(tuple(row)))}


def _weights(path: Path) -> Predict | None:
    try:
        from sentence_transformers import SparseEncoder
    except ImportError:
        return None
    import torch

    model = SparseEncoder(str(path), device="cpu", local_files_only=True,
                          model_kwargs={"dtype": torch.float32})  # fmt: skip

    def predict(row: Sequence[str]) -> Row:
        vector = model.encode(row[0]).coalesce()
        entries = zip(vector.indices()[0].tolist(), vector.values().tolist(), strict=True)
        return {WEIGHTS: [{TOKEN_ID: number, WEIGHT: weight} for number, weight in entries]}

    return predict


def _token_vectors(path: Path) -> Predict:
    import torch
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(path), device="cpu", local_files_only=True,
                               model_kwargs={"dtype": torch.float32})  # fmt: skip
    return lambda row: {EMBEDDINGS: model.encode_document(row[0]).tolist()}


def _encode(path: Path) -> Predict:
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu", local_files_only=True,
                                model_kwargs={"dtype": torch.float32})  # fmt: skip
    model.float()  # static vectors keep the type of the file
    return lambda row: {EMBEDDING: model.encode(row[0]).tolist()}


def _means(path: Path, facts: DirectoryFacts) -> Predict:
    """Return the mean of the vectors of the tokens, special ones included."""
    assert isinstance(facts.module, LibraryClass), "it is of transformers"
    model = _model(path, facts.module)
    run = _pipeline("feature-extraction", path, model=model, tokenizer=str(path))

    def predict(row: Sequence[str]) -> Row:
        [vectors] = run(row[0], truncation=True, return_tensors=True)
        return {EMBEDDING: vectors.mean(dim=0).tolist()}

    return predict


def _text_tower(path: Path, facts: DirectoryFacts) -> Predict:
    """Return the vectors of texts as the library compares them with those of images."""
    run = _pipeline("zero-shot-image-classification", path)
    image, most = Image.new("RGB", (32, 32)), facts.text.max_tokens if facts.text else None

    def predict(row: Sequence[str]) -> Row:
        given = run.preprocess(
            image,
            candidate_labels=[row[0]],
            hypothesis_template="{}",
            tokenizer_kwargs={"truncation": True, "max_length": most},
        )
        return _vector(run.model.get_text_features(**given["text_inputs"][0]))

    return predict
