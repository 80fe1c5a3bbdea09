"""The checks of a result before it is published, registered by name.

In: the figures of a run, from footers alone. Out: a result per gate, and whether to publish. Begin
with `gate.py`, the protocol, and `judging.py`. A new gate is a file with a class like
`shares.Volume`, a line here, and a case in tests/gates/test_gate_conformance.py.
"""

REGISTRY = {
    "conservation": "pipeline.gates.shares:CONSERVATION",
    "not_empty": "pipeline.gates.shares:NOT_EMPTY",
    "max_error_pct": "pipeline.gates.shares:ERRORS",
    "max_reason_pct": "pipeline.gates.shares:REASONS",
    "max_skipped_pct": "pipeline.gates.shares:SKIPPED",
    "max_truncated_pct": "pipeline.gates.shares:TRUNCATED",
    "max_repeating_pct": "pipeline.gates.shares:REPEATING",
    "volume": "pipeline.gates.shares:VOLUME",
    "constant": "pipeline.gates.drift:CONSTANT",
    "label_drift": "pipeline.gates.drift:LABELS",
    "score_drift": "pipeline.gates.drift:SCORES",
    "golden": "pipeline.gates.agreement:GOLDEN",
    "min_agreement_pct": "pipeline.gates.agreement:REFERENCE_CHECK",
    "carried": "pipeline.gates.agreement:CARRIED",
}
"""Name -> gate, in the order in which they are shown."""
