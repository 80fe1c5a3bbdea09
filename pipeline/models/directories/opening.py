"""Open a model directory: its facts on the driver, its module in an actor.

The directory's own library is asked once, in a confined child process, and its answers are kept per
node. Tokens, pixels and features that it makes from a few rows are compared with ours. The module
has code of the installed library and numbers of the files.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.node_cache import cached_folder, key_of, versions_of
from pipeline.core.registry import TASKS, built_in
from pipeline.models.directories.facts import (
    MULTI_VECTOR,
    PROMPTED,
    RAW,
    SPARSE,
    STATIC,
    TOWERS,
    DirectoryFacts,
    LibraryClass,
    OnnxFile,
    TextFacts,
    TimmModel,
)
from pipeline.models.directories.file_choice import onnx_file_of
from pipeline.models.directories.files import (
    CONFIG,
    MODULES,
    STANFORD,
    is_timm,
    make_view,
    quantised_by,
    read_object,
)
from pipeline.models.directories.snapshot import (
    ModelDirectory,
    local,
    local_bytes,
    open_directory,
)
from pipeline.models.directories.text.tokens import prompt_tokens
from pipeline.models.generate.spec import CAPTION, CAUSAL, SEQ2SEQ, SPEECH, WRITERS
from pipeline.models.tasks import served_as, task_class
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.model_input import Input
from pipeline.process.confined import ConfinedError, confined

if TYPE_CHECKING:
    import torch

_VERSION = 42
"""Version of the facts that are kept; raise it if the same directory gives other facts."""
KEPT_WITH = (
    *("transformers", "tokenizers", "sentence_transformers", "timm", "onnx", "onnxruntime"),
)
"""Packages whose versions decide the facts."""
_FILE = "facts.json"
_READ = "pipeline.models.directories.opening:facts_json"
_LIBRARIES = {
    "transformers": ("transformers",),
    "sentence_transformers": ("transformers",),
    "timm": ("timm",),
    "onnx": ("onnxruntime",),
}
"""Format of a directory -> the modules whose code is its architecture."""
LIMITS = {"cpu_s": 300, "memory_bytes": 8 << 30}
"""Limits of the process that reads a directory: the longest headers take most of them."""
OF_TRANSFORMERS = ("torch", "transformers", "pipeline.models.directories.opening:warm_up")
_OF_ONNX = ("onnx", "pydantic", "pipeline.models.directories.onnx.onnx_facts", "onnxruntime")
_IMPORTS = {
    "sentence_transformers": (*OF_TRANSFORMERS, "sentence_transformers"),
    "timm": ("torch", "timm"),
    "onnx": _OF_ONNX,
    "onnx of texts": (*OF_TRANSFORMERS, *_OF_ONNX),
}
"""Format of a directory -> modules that take long to import; others are of transformers."""


def read_facts(path: Path, wanted: str | None = None, *, head: str = "") -> DirectoryFacts:
    """Ask the library of a local model directory what it is, and check that its weights fit.

    It runs in a confined child process, unless a test calls it.

    Args:
        path: A folder of `snapshot.open_directory`, or any local directory of the files of a model.
        wanted: The registered name of the job's input, which chooses a tower of CLIP and SigLIP.
        head: RAW or SPARSE if the task reads the outputs of a class in that way; '': by the class.

    Raises:
        JobError: The directory is refused; says why, and what would be right.
    """
    if path.is_dir():
        with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
            view = make_view(path, Path(folder))
            by = quantised_by(read_object(path, CONFIG, optional=True))
            if not by:
                return _read(view, wanted, head=head)
            facts = _of_transformers(view, wanted, head=head, is_quantised=True)
            note = f"{CONFIG}: weights quantised by {by}"
            return replace(facts, quantised=by, notes=(*facts.notes, note))
    return _read(path, wanted, head=head)


def warm_up() -> None:
    """Import what each reading of a directory of transformers needs, and let caches fill."""
    import transformers.generation.utils
    import transformers.models.auto.image_processing_auto
    import transformers.models.auto.modeling_auto
    import transformers.models.auto.processing_auto  # noqa: F401
    from pydantic import TypeAdapter
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import pipeline.models.directories.image.image_facts
    import pipeline.models.directories.model_class
    import pipeline.models.directories.text.text_facts  # noqa: F401

    get_checkpoint_conversion_mapping("bert")
    TypeAdapter(DirectoryFacts)


def facts_json(path: str, wanted: str, head: str) -> str:  # of the command
    """Return `read_facts` as JSON, for the process that this one was confined by."""
    from pydantic import TypeAdapter

    facts = read_facts(Path(path), wanted, head=head)
    return TypeAdapter(DirectoryFacts).dump_json(facts).decode()


def _read(path: Path, wanted: str | None, *, head: str) -> DirectoryFacts:
    if (file := onnx_file_of(path)) is not None:
        from pipeline.models.directories.onnx.onnx_facts import read_onnx_facts

        # External data may not lie beyond a link.
        return read_onnx_facts(file.resolve(), path)
    if not path.is_dir():
        raise JobError(f"model.path: {path.name} is a file, expected the directory of a model")
    values = read_object(path, CONFIG, optional=True)
    has_modules = (path / MODULES).is_file() or values.get("architectures") == [STANFORD]
    if has_modules and head != RAW:
        from pipeline.models.directories.text.text_facts import sentence_transformers_facts

        return sentence_transformers_facts(path)
    values = read_object(path, CONFIG)
    if is_timm(values):
        from pipeline.models.directories.image.timm_models import timm_facts

        return timm_facts(path, values)
    return _of_transformers(path, wanted, head=head)


def _of_transformers(
    path: Path, wanted: str | None, *, head: str, is_quantised: bool = False
) -> DirectoryFacts:
    from pipeline.models.directories.image.image_facts import (
        caption_facts,
        image_facts,
        tower_facts,
    )
    from pipeline.models.directories.model_class import choose
    from pipeline.models.directories.text.text_facts import (
        encoder_facts,
        language_facts,
        sparse_facts,
    )

    chosen = choose(path, head=head, is_quantised=is_quantised)
    if chosen.head == PROMPTED:
        return image_facts(path, chosen)
    if chosen.head == RAW:
        from pipeline.models.directories.raw_facts import raw_facts

        return raw_facts(path, chosen)
    if chosen.takes_audio:
        from pipeline.models.directories.audio_facts import audio_facts

        return audio_facts(path, chosen)
    # Models that see images among the tokens of a text read texts without any, too.
    reads_texts = wanted == "text" and chosen.takes_text and not chosen.has_text_tower
    if chosen.head == CAPTION and not reads_texts:
        return caption_facts(path, chosen)
    if chosen.has_towers and not reads_texts:
        return tower_facts(path, chosen, wanted or "image")
    if chosen.head == CAPTION:
        chosen = replace(chosen, head=SEQ2SEQ if chosen.config.is_encoder_decoder else CAUSAL)
    if chosen.head in (CAUSAL, SEQ2SEQ, SPEECH):
        return language_facts(path, chosen)
    if chosen.head == SPARSE:
        return sparse_facts(path, chosen)
    return encoder_facts(path, chosen) if chosen.takes_text else image_facts(path, chosen)


def open_facts(
    uri: str,
    storage_options: Mapping[str, Any],
    input_name: str,
    pooling: str | None = None,
    task: str | None = None,
) -> tuple[ModelDirectory, DirectoryFacts]:
    """Copy a model directory into the node cache and read what it says.

    Args:
        input_name: The registered name of the job's input.
        pooling: The job's pooling; None: the directory's.
        task: The job's task; None: what the directory serves first.

    Raises:
        JobError: It is refused; says why, and what would be right.
        InfraError: It cannot be copied.
    """
    directory, path = open_directory(uri, storage_options)
    facts = _known_facts(directory, path, input_name, head=task if task in (RAW, SPARSE) else "")
    if pooling is not None:
        _check_pooling(facts, pooling)
    return directory, facts


def _known_facts(
    directory: ModelDirectory, path: Path, wanted: str, *, head: str
) -> DirectoryFacts:
    """Return the facts of a copy: those that are kept, otherwise as `read_facts`, and keep them."""
    from pydantic import TypeAdapter  # actors need none

    kept = TypeAdapter(DirectoryFacts)

    def write(folder: Path) -> None:
        imports = _IMPORTS.get(_format_of(path), OF_TRANSFORMERS)
        try:
            # Opening an .onnx file loads its weights.
            limits = {**LIMITS, "memory_bytes": LIMITS["memory_bytes"] + 2 * local_bytes(directory)}
            answer = confined(
                _READ, str(path), wanted, head, reads=[path], imports=imports, **limits
            )
        except ConfinedError as error:
            raise JobError(
                f"model.path = {directory.uri}: its library cannot read it: {error}"
            ) from None
        (folder / _FILE).write_text(answer)

    key = key_of(["directory facts", _VERSION, directory.sha256, wanted, head], KEPT_WITH)
    return kept.validate_json((cached_folder(key, write) / _FILE).read_bytes())


def _format_of(path: Path) -> str:
    if onnx_file_of(path) is not None:
        return "onnx of texts" if (path / CONFIG).is_file() else "onnx"
    if (path / MODULES).is_file():
        return "sentence_transformers"
    has_config = (path / CONFIG).is_file()
    return "timm" if has_config and is_timm(read_object(path, CONFIG)) else "transformers"


def _check_pooling(facts: DirectoryFacts, pooling: str) -> None:
    declared = facts.pooling
    if declared is None:
        raise JobError(f"model.pooling: has no effect on {facts.architecture}; leave it out")
    if len(declared.modes) > 1:
        raise JobError(
            f"model.pooling: the directory joins {', '.join(declared.modes)} to one vector; leave "
            "it out"
        )
    if pooling not in declared.known:
        raise JobError(f"model.pooling = {pooling!r}: expected one of {', '.join(declared.known)}")


def library_digest(facts: DirectoryFacts) -> str:
    """Digest the versions of the libraries that hold the architecture."""
    text = json.dumps([facts.format_name, versions_of(_LIBRARIES[facts.format_name])])
    return hashlib.sha256(text.encode()).hexdigest()


def directory_module(
    directory: ModelDirectory,
    facts: DirectoryFacts,
    model_input: Input,
    pooling: str | None,
    task: TaskSpec,
) -> torch.nn.Module:
    """Build the module of a directory from this node's copy; see `build_module`.

    Args:
        model_input: What it sees of a row.
        pooling: The job's pooling; None: the directory's.

    Raises:
        JobError: The directory changed, does not serve the task, or its weights do not fit.
    """
    path, text = local(directory), model_input.text
    if pooling is not None and facts.pooling is not None:
        facts = replace(facts, pooling=replace(facts.pooling, modes=(pooling,)))
    if facts.text is not None and text is not None:
        facts = _with_prefix(path, facts, facts.text, text.prefix)
    return build_module(path, facts, task, model_input)


def _with_prefix(path: Path, facts: DirectoryFacts, text: TextFacts, prefix: str) -> DirectoryFacts:
    """Replace the directory's prefix; poolings may leave out its tokens, so they are counted."""
    pooling = facts.pooling
    if prefix != text.prefix and pooling is not None and not pooling.include_prompt:
        count = prompt_tokens(path, text, prefix) if prefix else 0
        pooling = replace(pooling, prompt_tokens=count)
    return replace(facts, text=replace(text, prefix=prefix), pooling=pooling)


def build_module(
    path: Path,
    facts: DirectoryFacts,
    task: TaskSpec,
    model_input: Input | None = None,
) -> torch.nn.Module:
    """Build the module of a local directory: float32, on the CPU, in eval mode.

    Args:
        facts: What `read_facts` read of it; the job may have another pooling.
        model_input: What a model that writes or chooses sees of a row.

    Returns:
        Takes the tensors of `facts.text.tensor_names` by name, or `pixels` float (B, 3, H, W),
        normalised; returns logits (B, K), of tokens (B, L, K), or embeddings (B, D); of a detector
        `logits` and `pred_boxes`.

    Raises:
        JobError: The directory does not serve the task, or its weights do not fit.
    """
    served = require_served(task.kind, facts)
    if isinstance(facts.module, OnnxFile):
        from pipeline.models.directories.text.pooling import Pooled
        from pipeline.models.onnx_module import OnnxModule

        file = onnx_file_of(path)
        assert file is not None, "its facts were read"
        pooled = Pooled(path, facts.pooling) if facts.pooling and served == "embed" else None
        return OnnxModule.for_task(file, facts.module, served, pooled).eval()
    if isinstance(facts.module, TimmModel):
        from pipeline.models.directories.image.timm_models import timm_module

        module = timm_module(path, embeds=served == "embed")
    else:
        module = _class_module(path, facts, facts.module, task)
    if isinstance(facts.module, LibraryClass) and facts.module.head in WRITERS:
        assert model_input is not None, "a job has an input"
        module = _language_module(path, facts, facts.module.head, module, task, model_input)
    elif task.prompts and facts.text is not None:
        from pipeline.models.directories.text.zero_shot import with_prompts

        module = with_prompts(path, facts, module, task.prompts)
    return module.eval().requires_grad_(False)


def require_served(task: str, facts: DirectoryFacts) -> str:
    """Return the task whose outputs a directory gives for a task; see `served_as`.

    Raises:
        JobError: It does not serve the task.
    """
    served = served_as(task, facts.tasks)
    if served is None:
        reduced = ", ".join(task_class(task).reduces) or "none (`reduces` of its class)"
        hint = "" if task in built_in(TASKS) else f", and the task reduces {reduced}"
        for other, way in task_class(task).instead.items():
            if other in facts.tasks:
                hint = f"; take task {other!r}, {way}"
        raise JobError(
            f"model.task = {task!r}: {facts.architecture} of model.path serves "
            f"{', '.join(facts.tasks)}{hint}"
        )
    return served


def _language_module(
    path: Path,
    facts: DirectoryFacts,
    head: str,
    model: torch.nn.Module,
    task: TaskSpec,
    model_input: Input,
) -> torch.nn.Module:
    if task.generation is None:
        from pipeline.models.directories.text.choices import with_choices

        return with_choices(head, model, task, model_input)
    from pipeline.models.directories.text.tokens import output_tokenizer
    from pipeline.models.generate.build import with_decoding

    return with_decoding(head, model, task, output_tokenizer(path, facts, model_input))


def _class_module(
    path: Path, facts: DirectoryFacts, named: LibraryClass, task: TaskSpec
) -> torch.nn.Module:
    from pipeline.models.directories.image.image_modules import (
        DetectorModule,
        ImageModule,
        RawModule,
    )
    from pipeline.models.directories.text.pooling import (
        Logits,
        Pooled,
        Splade,
        TextModule,
        TokenVectors,
    )

    if named.head == STATIC:
        from pipeline.models.directories.text.static_embedding import StaticEmbedding

        model: torch.nn.Module = StaticEmbedding(path / named.at)
    else:
        model = _library_module(path, named)
    if named.head == RAW:
        return RawModule(model)
    if named.head == TOWERS:
        return _tower(path, facts, task, model)
    if named.head == "detection":
        return DetectorModule(model)
    if named.head == PROMPTED:
        return _prompted(path, facts, task, model)
    if named.head in WRITERS:
        return model
    if facts.text is None:
        return ImageModule(model, facts.pooling.modes[0] if facts.pooling else "logits")
    if named.head == SPARSE:
        return TextModule(model, Splade())
    if named.head == MULTI_VECTOR:
        assert facts.pooling is not None, "it has the layers over the vectors"
        return TokenVectors(model, path, facts.pooling)
    return TextModule(model, Pooled(path, facts.pooling) if facts.pooling else Logits())


def _tower(
    path: Path, facts: DirectoryFacts, task: TaskSpec, model: torch.nn.Module
) -> torch.nn.Module:
    from pipeline.models.directories.image.image_modules import (
        AudioTower,
        ImageTower,
        ImageZeroShot,
    )

    if facts.audio is not None:
        return AudioTower(model)
    if facts.text is not None:
        return _text_tower(model, facts, facts.text)
    if not task.prompts:
        return ImageTower(model)
    from pipeline.models.directories.text.zero_shot import EncoderZeroShot, token_ids

    text = facts.prompt_text
    assert text is not None, "it serves zero_shot"
    ids = token_ids(path, text, task.prompts)
    encoder = EncoderZeroShot(_text_tower(model, facts, text), ids, text.pad_id)  # only once
    return ImageZeroShot(model, encoder.prompts)


def _prompted(path: Path, facts: DirectoryFacts, task: TaskSpec, model: Any) -> torch.nn.Module:
    from pipeline.models.directories.image.image_modules import JointDetector, PromptedDetector
    from pipeline.models.directories.text.zero_shot import EncoderZeroShot, token_ids

    text = facts.prompt_text
    assert text is not None, "it takes prompts"
    ids = token_ids(path, text, task.prompts)
    if not hasattr(model, "class_predictor"):
        return JointDetector(model, ids)
    encoder = EncoderZeroShot(_text_tower(model.base_model, facts, text), ids, text.pad_id)
    return PromptedDetector(model, encoder.prompts)


def _text_tower(model: torch.nn.Module, facts: DirectoryFacts, text: TextFacts) -> torch.nn.Module:
    from pipeline.models.directories.image.image_modules import TextTower

    fills = facts.architecture.startswith("Siglip")
    return TextTower(model, text.max_tokens if fills else None, text.pad_id)


def _library_module(path: Path, facts: LibraryClass) -> torch.nn.Module:
    from pipeline.models.directories.library import config_of, load, named_class

    config = config_of(read_object(path / facts.at, CONFIG))
    return load(named_class(facts.built, config), config, path / facts.at, facts.absent)
