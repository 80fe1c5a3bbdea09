"""Task `raw`: the declared outputs as columns, or the columns that post-processing makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from pipeline.models.outputs import OutputError, nested, nested_type, require
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec
from pipeline.models.tasks.postprocess import Postprocess, load_postprocess, postprocessed

if TYPE_CHECKING:
    import torch

    from pipeline.job.model import Model


@dataclass(frozen=True)
class Raw(Task):
    """The outputs that the job declares."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("outputs", "postprocess", "postprocess_args")
    serves: ClassVar[tuple[str, ...]] = ("segmentation",)
    takes_all_outputs: ClassVar[bool] = True
    has_golden: ClassVar[bool] = False

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        if not model.outputs:
            yield "task 'raw' needs outputs, each with a name and a shape"

    def fields(self) -> list[pa.Field]:
        if self.spec.postprocess is not None:
            return list(self._step.schema)
        return [pa.field(output.name, nested_type(output.shape)) for output in self.spec.outputs]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        named = self._by_name(outputs)
        return {
            output.name: require(
                named[output.name], (num_rows, *output.shape), "", f"model.outputs {output.name}"
            ).float()
            for output in self.spec.outputs
        }

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        if self.spec.postprocess is not None:
            return postprocessed(self.spec.postprocess, self._step, arrays, ok)
        return {output.name: nested(arrays[output.name], ok) for output in self.spec.outputs}

    @cached_property
    def _step(self) -> Postprocess:
        assert self.spec.postprocess is not None, "callers check it"
        return load_postprocess(self.spec.postprocess, self.spec.postprocess_args)

    def _by_name(self, outputs: Any) -> Mapping[str, Any]:
        """Match outputs to declared names: by key of a dict, otherwise by position."""
        names = [output.name for output in self.spec.outputs]
        if isinstance(outputs, Mapping):
            missing = [name for name in names if name not in outputs]
            if missing:
                available = ", ".join(sorted(map(str, outputs)))
                raise OutputError(
                    f"no output {missing[0]!r} (model.outputs); the model has {available}"
                )
            return outputs
        listed = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
        if listed and isinstance(listed[0], Mapping):
            raise OutputError(
                "the model returns a list with one dict per row, as detectors do; model.outputs "
                "needs tensors of one shape for all rows: pad them in a factory around the model"
            )
        if len(listed) < len(names):
            raise OutputError(
                f"the model has {len(listed)} outputs, model.outputs declares {len(names)}"
            )
        return dict(zip(names, listed, strict=False))
