"""How busy the stages of a made-up run were: loads to find limits of."""

from pipeline.core.figures import SliceFigures, StageCounters
from pipeline.report.sections.limits import Load


def counted(rows: int, busy_s: float) -> StageCounters:
    return StageCounters(rows, rows, 0, rows * 100, rows * 100, busy_s)


def figures_of(**stages: StageCounters) -> SliceFigures:
    return SliceFigures(stages)


def load_of(busy: dict[str, float], slots: dict[str, float], **more) -> Load:
    """A stream of 100 s and 10,000 rows; `busy` has the seconds of a tenth of it."""
    return Load(
        SliceFigures({stage: counted(10_000, 10 * busy_s) for stage, busy_s in busy.items()}),
        slots={
            stage: slots[group]
            for stage, group in (
                ("read", "reader"),
                ("decode", "decoder"),
                ("transform", "decoder"),
                ("transfer", "actor"),
                ("predict", "actor"),
                ("write", "writer"),
            )
        },
        **{"streaming_wall_s": 100.0, "wall_s": 120.0, **more},
    )
