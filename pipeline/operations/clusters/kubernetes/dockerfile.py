"""The image of the pods: Ray's own, with this package and what the job needs of its extras."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata

from pipeline.operations.clusters.kubernetes.asked import JobText
from pipeline.storage.protocols import OBJECT_PROTOCOLS

_RUNTIMES = ("onnxruntime", "openvino", "mnn")
_CPU_TORCH = "https://download.pytorch.org/whl/cpu"
_TEXT = """\
# In the folder that has pyproject.toml:  docker build -f Dockerfile -t IMAGE .
FROM rayproject/ray:{ray}-py{python}-{kind}
WORKDIR /home/ray/pipeline
COPY --chown=ray pyproject.toml README.md LICENSE ./
COPY --chown=ray pipeline pipeline
RUN pip install --no-cache-dir {index}'.[{extras}]' 'ray[default]=={ray}'
WORKDIR /home/ray
"""


def dockerfile(text: JobText) -> str:
    """Return the text of a Dockerfile; the versions of Ray and Python are those of this process."""
    kind = "gpu" if text.wants_gpu else "cpu"
    return _TEXT.format(
        ray=metadata.version("ray"),
        python=f"{sys.version_info.major}{sys.version_info.minor}",
        kind=kind,
        index="" if text.wants_gpu else f"--extra-index-url {_CPU_TORCH} ",
        extras=",".join(sorted(set(_extras(text)))),
    )


def _extras(text: JobText) -> Iterator[str]:
    job = text.job
    yield "submit"
    for uri in (job.source.uri, job.sink.uri, job.model.path, job.model.weights):
        protocol = OBJECT_PROTOCOLS.get((uri or "").partition("://")[0])
        if protocol is not None:
            yield protocol.extra
    if job.sink.table == "delta":
        yield "delta"
    if job.model.runtime in _RUNTIMES:
        yield job.model.runtime
    if job.model.name and not job.model.weights:
        yield "demo"
    if job.model.path:
        yield from ["onnxruntime"] if job.model.path.endswith(".onnx") else ["transformers", "timm"]
