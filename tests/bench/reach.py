"""Hold every class of the installed transformers that the package takes to the library itself.

    python tests/bench/reach.py [--tasks classify embed] [--only Bert Yoso] [--out build/reach.json]
        [--page build/reach.md]

Each class gets a directory with random weights, of one or two layers, a tokenizer or processor
beside it. Rows go through the package in batches of four, and through the library one at a time, of
what the package prepared; both without Ray. `equal`: scores and numbers differ by at most 1e-4,
texts not at all. `refused`: by a message of the package. `not built`: the library makes no such
model of a small configuration, or cannot run it. Exit 1 if a class differs. Hours.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))

import torch
from support.models.language_models import library_scores, write_language_tokenizer
from support.models.snapshots import write_image_processor, write_json, write_tokenizer

from pipeline.core.errors import PipelineError
from pipeline.core.failures import failure_columns
from pipeline.core.printable import clean_message
from pipeline.core.schema import AUDIO, IMAGE, TEXT
from pipeline.inference.engines import open_engine
from pipeline.job.model import Generate, Model
from pipeline.job.transform import Transform
from pipeline.models.agreement import AgreementLimits
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.preprocessing.model_input import Limits, take_rows

EQUAL, DIFFERS, REFUSED, NOT_BUILT = "equal", "differs", "refused", "not built"
SAME = AgreementLimits(1e-4, 1 - 1e-8, 1e-4, allows_ties=True)
TEXTS = ("a cat", "the dog sat on the mat and ran", "", "rain in the city " * 5, "one", "a b c d e")
PROMPT, ANSWERS, NEW_TOKENS = "Review: {text}", {"good": "positive", "bad": "not at all"}, 6
SIDE_PX, RATE_HZ, NUM_LABELS = 32, 16_000, 3
MOST_S, MOST_BYTES = 600, 12 << 30


class Table(NamedTuple):
    """Classes of the library that one task takes."""

    mapping: str
    """Name of the library's table of them."""
    input: str
    fields: Mapping[str, Any]
    """Of the job's section `model`."""


TABLES = {
    "classify": Table("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "text", {"top_k": 3}),
    "tokens": Table("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", "text", {}),
    "embed": Table("MODEL_MAPPING_NAMES", "text", {"pooling": "mean"}),
    "choices": Table(
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "text", {"prompt": PROMPT, "choices": ANSWERS}
    ),
    "generate": Table("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "text", {"prompt": PROMPT}),
    "translate": Table("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "text", {"prompt": PROMPT}),
    "images": Table("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "image", {"top_k": 3}),
    "vectors": Table("MODEL_MAPPING_NAMES", "image", {}),
    "detect": Table("MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES", "image", {"min_score": 0.0}),
    "sound": Table("MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", "audio", {"top_k": 3}),
}
KINDS = {"translate": "generate", "images": "classify", "vectors": "embed", "sound": "classify"}
"""Names above -> the package's task, where it has another name."""
_NAMES = {
    2: "num_hidden_layers num_layers n_layer n_layers layers encoder_layers decoder_layers "
    "num_encoder_layers num_decoder_layers decoder_num_layers encoder_num_hidden_layers "
    "num_key_value_heads num_kv_heads num_experts_per_tok top_k_experts",
    4: "num_attention_heads n_head n_heads num_heads heads encoder_attention_heads "
    "decoder_attention_heads num_experts num_local_experts n_routed_experts",
    8: "head_dim d_kv kv_channels attention_head_size patch_size qk_rope_head_dim "
    "qk_nope_head_dim v_head_dim",
    16: "intra_bottleneck_size q_lora_rank kv_lora_rank attention_window "
    "num_conv_pos_embeddings classifier_proj_size",
    32: "hidden_size d_model n_embd dim emb_dim embed_dim embedding_size decoder_hidden_size "
    "word_embed_proj_dim moe_intermediate_size shared_expert_intermediate_size",
    64: "intermediate_size d_inner ffn_dim d_ff n_inner hidden_dim encoder_ffn_dim "
    "decoder_ffn_dim ffn_hidden_size",
    160: "max_position_embeddings n_positions n_ctx max_seq_len",
}
SIZES: Mapping[str, Any] = {
    **{name: size for size, names in _NAMES.items() for name in names.split()},
    **{"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 20], "image_size": SIDE_PX},
    **{"conv_dim": [16, 16, 16], "conv_kernel": [10, 3, 3], "conv_stride": [5, 4, 4]},
    **{"num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3, "num_queries": 12},
    "tie_word_embeddings": False,
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


class Verdict(NamedTuple):
    """What became of one class."""

    task: str
    name: str
    verdict: str
    why: str = ""


class NotBuilt(Exception):
    """The library itself makes no such small model, or cannot run it."""


def classes_of(table: Table) -> list[str]:
    """Return the names of the classes of a table, each once."""
    from transformers.models.auto import modeling_auto

    found: list[str] = []
    for names in getattr(modeling_auto, table.mapping).values():
        found += [names] if isinstance(names, str) else list(names)
    return sorted(set(found))


def small_config(cls: Any, size: int) -> Any:
    """Return a small configuration of a class, whose sizes may also be those of parts of it."""
    made = cls.config_class
    plain = made().to_dict()

    def sizes(values: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in values.items():
            if isinstance(value, dict) and name.endswith("_config"):
                found[name] = {**sizes(value), "model_type": value.get("model_type")}
            elif name in SIZES and value is not None:
                is_one = isinstance(value, list | tuple) and isinstance(SIZES[name], int)
                found[name] = [SIZES[name]] * len(value) if is_one else SIZES[name]
        if "vocab_size" in values:
            found["vocab_size"] = size
        return found

    return made(**{**sizes(plain), **IDS, "num_labels": NUM_LABELS})


def write(folder: Path, name: str, table: Table) -> Any:
    """Write the directory of a class; return the class."""
    import transformers

    cls = getattr(transformers, name, None)
    if cls is None or getattr(cls, "main_input_name", None) not in INPUTS_OF[table.input]:
        return None
    writes = table.input == "text" and "prompt" in table.fields
    size = 0
    if table.input == "text":
        size = write_language_tokenizer(folder) if writes else write_tokenizer(folder, "bert")
    elif table.input == "image":
        write_image_processor(folder)
    else:
        write_json(folder / "preprocessor_config.json", {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
            "sampling_rate": RATE_HZ, "do_normalize": True})  # fmt: skip
    torch.manual_seed(0)
    model = cls(small_config(cls, size)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return cls


INPUTS_OF = {"text": ("input_ids",), "image": ("pixel_values",), "audio": ("input_values",)}


def spec_of(folder: Path, task: str, table: Table, vector: int) -> ModelSpec:
    """Return the model of a job."""
    kind = KINDS.get(task, task)
    more = {"generate": Generate(max_new_tokens=NEW_TOKENS)} if kind == "generate" else {}
    if kind == "embed":
        more = {"embedding_dim": vector}
    model = Model(path=str(folder), task=kind, **table.fields, **more)
    return resolve_model(model, Transform(), input_name=table.input)


def rows_of(name: str) -> pa.Table:
    """Return rows of the source: texts, photos of noise, or tones."""
    drawn = np.random.default_rng(0)
    if name == "text":
        column = {TEXT: pa.array(TEXTS, pa.large_string())}
    elif name == "image":
        column = {IMAGE: pa.array([_photo(drawn) for _ in range(5)], pa.large_binary())}
    else:
        column = {AUDIO: pa.array([_tone(hz) for hz in (200, 700, 3000)], pa.large_binary())}
    count = len(next(iter(column.values())))
    ids = [str(row) for row in range(count)]
    return pa.table({"row_id": ids, "uri": ids, **column, **failure_columns([None] * count)})


def _photo(drawn: np.random.Generator) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(drawn.integers(0, 255, (40, 52, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def _tone(hz: int) -> bytes:
    import soundfile

    file = io.BytesIO()
    seconds = np.arange(RATE_HZ // 2) / RATE_HZ
    soundfile.write(file, np.sin(2 * np.pi * hz * seconds), RATE_HZ, format="WAV")
    return file.getvalue()


def of_library(spec: ModelSpec, cls: Any, folder: Path, prepared: pa.Table) -> list[Any]:
    """Return what the library makes of each row alone: results of the task, texts, or scores."""
    task, inputs = make_task(spec.task), spec.input.arrays(prepared)
    counts = spec.input.lengths(inputs, np.arange(prepared.num_rows))
    model, normalise = cls.from_pretrained(folder).eval(), spec.input.normaliser(torch.float32)
    found = []
    for row in range(prepared.num_rows):
        if counts is not None:
            ids = torch.from_numpy(inputs["input_ids"][row, : counts[row]].astype(np.int64))[None]
            given = seen = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        else:
            [(slot, values)] = take_rows(inputs, [row]).items()
            tensor = np.stack(values) if values.dtype == object else values
            seen = {slot: torch.from_numpy(tensor.copy())}  # as the task gets it
            [ready] = normalise(*seen.values())
            given = {cls.main_input_name: ready}
        with torch.inference_mode():
            if spec.task.kind == "generate":
                found.append(_written(model, given, folder))
            elif spec.task.kind == "choices":
                found.append(_chosen(folder, given["input_ids"][0].tolist(), spec))
            else:
                outputs = _outputs(spec, model(**given), given)
                found.append({n: v.numpy() for n, v in task.reduce_batch(outputs, 1, seen).items()})
    return found


def _outputs(spec: ModelSpec, found: Any, given: Mapping[str, torch.Tensor]) -> Any:
    if spec.task.kind == "detect":
        return {"logits": found.logits, "pred_boxes": found.pred_boxes}
    if spec.task.kind != "embed":
        return found.logits
    if spec.input.counts_tokens:
        return found.last_hidden_state.mean(1)
    pooled = getattr(found, "pooler_output", None)  # what images are pooled by, left alone
    return found.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def _written(model: Any, given: Mapping[str, torch.Tensor], folder: Path) -> str:
    from transformers import AutoTokenizer

    done = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)[0]
    begin = 1 if model.config.is_encoder_decoder else given["input_ids"].shape[1]
    text: str = AutoTokenizer.from_pretrained(folder).decode(done[begin:], skip_special_tokens=True)
    return text


def _chosen(folder: Path, prompt: Sequence[int], spec: ModelSpec) -> npt.NDArray[np.float64]:
    from pipeline.preprocessing.texts.prompts import prompt_tokenizer

    assert spec.input.text is not None, "the rows are texts"
    answers = prompt_tokenizer(spec.input.text).answers(spec.task.prompts)
    scores = np.exp(library_scores(folder, prompt, answers))
    return np.asarray(scores / scores.sum(), np.float64)


def compared(folder: Path, task: str, name: str) -> Verdict | None:
    """Return what becomes of a class; None: it takes another input than the task's."""
    table = TABLES[task]
    try:
        cls = write(folder, name, table)
        if cls is None:
            return None
        vector = int(getattr(cls.config_class.from_pretrained(folder), "hidden_size", 32))
    except Exception as error:  # noqa: BLE001  # whatever the library raises
        return Verdict(task, name, NOT_BUILT, _told(error))
    try:
        spec = spec_of(folder, task, table, vector)
        rows = rows_of(table.input)
        prepared = spec.input.prepare(rows, {}, Limits(1 << 30, 1 << 30))
        config = PredictorConfig(spec, 4, 0.0, 1, pa.schema([]), batch_tokens=512)
        engine = open_engine(config)
        table_of = engine.predict(prepared, {})
    except PipelineError as error:
        return Verdict(task, name, REFUSED, _told(error))
    try:
        expected = of_library(spec, cls, folder, prepared)
    except Exception as error:  # noqa: BLE001  # as above
        return Verdict(task, name, NOT_BUILT, _told(error))
    failed = next((row for row in table_of.to_pylist() if row["error"]), None)
    if failed is not None:
        return Verdict(task, name, REFUSED, f"{failed['error']}: {failed['message']}")
    worst = _difference(spec, expected, table_of.to_pylist(), engine, prepared)
    return Verdict(task, name, DIFFERS if worst else EQUAL, worst)


def _difference(
    spec: ModelSpec, expected: Sequence[Any], rows: Sequence[Any], engine: Any, prepared: pa.Table
) -> str:
    if spec.task.kind == "generate":
        pairs = [(row["text"], text) for row, text in zip(rows, expected, strict=True)]
        return "; ".join(f"{ours!r}, not {theirs!r}" for ours, theirs in pairs if ours != theirs)
    if spec.task.kind == "choices":
        off = [
            abs({e["label"]: e["score"] for e in row["top_k"]}[label] - score)
            for row, scores in zip(rows, expected, strict=True)
            for label, score in zip(spec.task.labels, scores, strict=True)
        ]
        return f"scores are off by {max(off):.2g}" if not max(off) <= SAME.max_score_diff else ""
    task, found = make_task(spec.task), engine.reduce(spec.input.arrays(prepared))
    pairs = [task.compare(each, take_rows(found, [row]), SAME) for row, each in enumerate(expected)]
    bad = [each for each in pairs if not each.agrees.all()]
    return f"{len(bad)} of {len(pairs)} rows, such as {bad[0].worst:.4g}" if bad else ""


def _told(error: Exception) -> str:
    return clean_message(f"{type(error).__name__}: {error}", 300)


def _child(task: str, name: str, results: Any) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        try:
            found = compared(path, task, name)
        except Exception as error:  # noqa: BLE001  # what neither side is meant to raise
            found = Verdict(task, name, DIFFERS, _told(error))
    results.send(found)


def apart(task: str, name: str) -> Verdict | None:
    """Compare a class in a process of its own, which may crash or never end."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_child, args=(task, name, theirs))
    child.start()
    theirs.close()
    try:
        if ours.poll(MOST_S):
            found: Verdict | None = ours.recv()
            return found
        return Verdict(task, name, NOT_BUILT, f"took more than {MOST_S} s")
    except EOFError:
        child.join()
        return Verdict(task, name, NOT_BUILT, f"its process ended with {child.exitcode}")
    finally:
        child.kill()
        child.join()


def page_of(found: Sequence[Verdict]) -> str:
    """Return the page: a table of numbers, then the classes that are not equal."""
    import transformers

    lines = [f"# Every class of transformers {transformers.__version__}", ""]
    lines += ["| task | equal | differs | refused | not built |", "|---|---:|---:|---:|---:|"]
    for task in dict.fromkeys(each.task for each in found):
        counts = Counter(each.verdict for each in found if each.task == task)
        cells = (str(counts[v]) for v in (EQUAL, DIFFERS, REFUSED, NOT_BUILT))
        lines.append(f"| {task} | {' | '.join(cells)} |")
    lines += ["", "| task | class | verdict | why |", "|---|---|---|---|"]
    lines += [
        f"| {task} | {name} | {verdict} | {why.replace('|', '/')} |"
        for task, name, verdict, why in found
        if verdict != EQUAL
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Hold every class to the library.")
    parser.add_argument("--tasks", nargs="+", default=[*TABLES], choices=TABLES)
    parser.add_argument("--only", nargs="+", default=[""], help="what names of classes contain")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    import transformers

    # What every class needs is imported once; children are forked.
    from transformers.generation import utils  # noqa: F401
    from transformers.models.auto import image_processing_auto, processing_auto  # noqa: F401
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.vit import modeling_vit  # noqa: F401

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = []
    for task in args.tasks:
        names = classes_of(TABLES[task])
        for name in (each for each in names if any(part in each for part in args.only)):
            if (verdict := apart(task, name)) is not None:
                found.append(verdict)
                print(*verdict, sep="\t", flush=True)
                if args.out is not None:
                    args.out.write_text(json.dumps(found))
    if args.page is not None:
        args.page.write_text(page_of(found))
    return int(any(each.verdict == DIFFERS for each in found))


if __name__ == "__main__":
    sys.exit(main())
