"""The reference check of written texts: one pass over a row and its output, without a batch.

Greedy tokens are the best of the logits before them. Where two are about as likely, other shapes of
a batch may tip the balance, so a token must be the best up to what rounding of a type makes. Of
records it must be the best of those that may come.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.inference.writing.greedy import Read
from pipeline.inference.writing.rules import AppliedRules, Row
from pipeline.models.directories.text.writing.decoding import Decoding
from pipeline.models.generation import Generation

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_GAP, _ROUNDINGS = 0.02, 2.0


@torch.inference_mode()
def num_agreed(
    module: Decoding, generation: Generation, rows: Sequence[Row], precision: str, read: Read
) -> int:
    """Count rows each of whose tokens is the best, or as good as the best.

    Args:
        module: Of float32, eager.
        generation: How the rows were written.
        rows: Written, and ended.
        precision: In which they were written.
        read: Reads rows.
    """
    rules = AppliedRules(generation, module.device, module.grammar)
    kind = torch.finfo(_TYPES.get(precision, torch.float32))
    return sum(_agrees(module, rules, row, kind.eps, read) for row in rows)


def _agrees(module: Decoding, rules: AppliedRules, row: Row, eps: float, read: Read) -> bool:
    with read([row.number]) as tensors:
        logits = module.plain(tensors, row.before, row.tokens)
    limit = _LEAST_GAP + _ROUNDINGS * eps * float(logits.abs().max())
    seen = Row(row.number, before=row.before)
    for values, token in zip(logits, row.tokens, strict=True):
        [allowed] = rules(values[None], [seen])
        if not float(allowed.max() - allowed[token]) <= limit:
            return False
        seen.tokens.append(token)
    return True
