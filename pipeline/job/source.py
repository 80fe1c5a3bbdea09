"""Section `source` of the job file: where the rows come from, and which are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.core import registry
from pipeline.core.errors import JobError
from pipeline.core.media import ENCODED, Encoded
from pipeline.core.user_code import extension_errors
from pipeline.job.condition import Condition, parse
from pipeline.job.features import FeatureEntry, SourceInput, column_of, name_trouble
from pipeline.job.registered import check_options, registered
from pipeline.job.section import PositiveInt, Section, Texts, TextsByName

Extension = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]

_FIELDS_OF_URIS = ("uri_roots", "uri_base", "http_hosts", "private_hosts", "allow_http")
_FIELDS_OF_FEATURES = ("null_features", "lossy_features")
_FIELDS_OF_TEXTS = ("text_pair_column", "prompt_columns", "max_text_bytes")
FIELDS_OF_COLUMNS = (
    *("image_column", "image_encoding", "audio_column", "audio_encoding"),
    *("uri_column", *_FIELDS_OF_URIS),
    *("features", *_FIELDS_OF_FEATURES, "text_column", *_FIELDS_OF_TEXTS, "inputs"),
    *("id_column", "pass_through", "casts"),
)
"""Fields of formats whose rows have columns."""
_FIELDS_OF_FORMATS = (*FIELDS_OF_COLUMNS, "image_extensions", "audio_extensions", "where")
"""Fields of some formats only; each format lists its own."""
_OTHER_COLUMNS = ("uri_column", "features", "text_column", "inputs")

SettingsDocument = Literal["fingerprint", "rows", "published"]
"""What holds a job's section: the fingerprint of a plan, the digest that decides whether a row of
an earlier version is taken over, or the manifest."""
_LISTING_FIELDS: Mapping[str, tuple[SettingsDocument, ...]] = {
    "uri": (),
    "files": ("fingerprint",),
    "follow_links": ("published",),
    "storage_options": (),
    "where": ("fingerprint", "published"),
}
"""Fields that only choose files or rows -> the documents that hold them; all hold every other
field. Plans digest the listed files one by one, and storage options may hold secrets."""


class InputColumns(NamedTuple):
    """The columns of a shard that hold the input of a row."""

    content: str
    """Their content: a name of `ENCODED`, `uri` for URIs of such files, `features`, `text` or
    `several`."""
    names: tuple[str, ...]
    """In the order of the model's inputs; one name for images, clips and URIs."""


class Source(Section):
    """Where the rows come from."""

    uri: str = Field(min_length=1)
    """A folder, a file or a glob (`*`, `**`) on a local disk, in an object store (`s3://`, `gs://`,
    `az://` or `abfs://`) or in a dataset of a hub (`hf://datasets/ORG/NAME@REVISION/path`)."""
    format: str
    """Format of the shards: `images`, `audio`, `parquet`, `delta`, `iceberg`, `jsonl`, `csv` or
    `webdataset`. [Formats](#formats) has the rules of each, and which of these fields it reads.
    Installed packages may add formats (entry points `pipeline.sources`)."""
    files: Texts | None = None
    """The shards, relative to `uri` (then a folder) and in this order: a list, or the URI of a text
    file with one per line. Default: all files below `uri`."""
    where: str | None = None
    """A condition on columns of the source, as in SQL: only rows for which it is true are input
    (`day >= date '${date}' and (lang in ('de', 'fr') or score is null)`). Columns may be fields
    (`meta.lang`), come from the names of folders, or be partition columns of a table.
    [Some rows only](lake.md#some-rows-only) has the operators and types."""
    follow_links: bool = True
    """Read regular files through symbolic links, wherever they point; `false` skips and counts such
    links. Links to folders are always skipped and counted. URIs in a column have rules of their
    own."""
    image_column: str = "image"
    """Column with the encoded image."""
    image_encoding: Literal["binary", "base64"] = "binary"
    """Encoding of `image_column`: bytes, or base64, plain or as a URI of the form
    `data:image/jpeg;base64,...`. Whitespace in base64 is ignored; other invalid characters
    quarantine the row as `decode_error`."""
    audio_column: str | None = None
    """Column with the encoded [audio clip](#sound), which is the model's input instead of an
    image."""
    audio_encoding: Literal["binary", "base64"] = "binary"
    """Encoding of `audio_column`; see `image_encoding`."""
    uri_column: str | None = None
    """Text column with the URIs of images, which are fetched instead of reading `image_column`;
    with `input: audio`, of clips. Only URIs that the next five fields allow are fetched."""
    uri_roots: tuple[str, ...] = ()
    """Folders and prefixes, in addition to `uri`, below which URIs may point."""
    uri_base: str | None = None
    """Base of relative URIs. Default: `uri`."""
    http_hosts: tuple[str, ...] = ()
    """Hosts (`host` or `host:port`) from which files may be fetched over https, at public addresses
    only. Hosts that they redirect to must be listed as well."""
    private_hosts: tuple[str, ...] = ()
    """Additional hosts, each `host:port`, whose address may be private or loopback."""
    allow_http: bool = False
    """Also fetch over http, which has neither encryption nor integrity protection."""
    features: tuple[FeatureEntry, ...] = ()
    """Numeric columns and lists of numbers that are the model's input instead of an image, joined
    in this order into one float32 vector per row. A row whose list differs in length from the first
    one is quarantined as `bad_schema`. True is 1 and false is 0. An entry is a name, or a mapping
    for categories, dates and nulls. Columns may come from the names of the shards' folders
    (`year=2026/`)."""
    text_column: str | None = None
    """Column of texts that are the model's input instead of an image. A null is quarantined as
    `null_input`, and text that is not UTF-8 as `decode_error`; an empty text is valid."""
    text_pair_column: str | None = None
    """Column of second texts, for models that judge pairs of texts."""
    prompt_columns: tuple[str, ...] = ()
    """Further columns of texts, which `model.prompt` and `model.messages` name in braces. Taken
    from these; leave it out."""
    inputs: dict[str, SourceInput] = Field(default_factory=dict)
    """Several inputs per row, named after the arguments of the model's `forward`, such as `{photo:
    {image_column: photo}, caption: {text_column: body}}`. A row that lacks one is quarantined, and
    the message names it."""
    input: str | None = None
    """Type of the model's input. Default: the type of the columns, which is image, audio, features
    or text. `audio` means that URIs, and members of a tar, are audio clips. Installed packages may
    add inputs (entry points `pipeline.preprocessing`)."""
    null_features: Literal["quarantine", "zero", "nan"] = "quarantine"
    """Treatment of nulls in features whose entry has no `null`: quarantine the row as `null_input`,
    or replace the null by 0 or NaN."""
    lossy_features: bool = False
    """Accept integers beyond 16,777,216, which float32 rounds. By default such an integer ends the
    run. The same holds for decimals without fractional digits, for names of folders, and for
    numbers of CSV and JSON lines written like `123456789.0`, since those formats have one numeric
    type. Fractions and the doubles of Parquet are always rounded, to 7 digits."""
    id_column: str | None = None
    """Column that becomes `row_id`, as text; numbers are written out. Default: the id is `<shard
    path>#<row>`."""
    pass_through: TextsByName = ()
    """Columns copied beside the predictions: a list, or a mapping from published names to columns,
    such as `{true_label: label}`. They include columns from the names of the shards' folders
    (`year=2026/`), which are text unless `casts` sets a type; the folder takes precedence over a
    column of that name in the shard, also for features. A value of more than 16 MiB quarantines its
    row as `too_large`. Webdataset: extensions of members whose content becomes a column: `cls` is
    an integer (int64), all others are text."""
    image_extensions: tuple[Extension, ...] = ENCODED["image"].extensions
    """Extensions of members of a tar that hold the image, in order of preference."""
    audio_extensions: tuple[Extension, ...] = ENCODED["audio"].extensions
    """With `input: audio`: extensions of members of a tar that hold the clip, in order of
    preference."""
    casts: dict[str, str] = Field(default_factory=dict)
    """Types of pass-through columns, by published name, and in csv and JSON lines also of columns
    in `where` (`taken_at: timestamp[us, tz=UTC]`, `price: decimal128(18, 2)`). Default: the types
    of the shards; text for csv. A value that does not fit quarantines its row, as does a text that
    does not represent a value exactly."""
    max_image_bytes: PositiveInt = 64 * 1024 * 1024
    """A larger encoded image or audio clip, in bytes, is quarantined as `too_large` without being
    decoded."""
    max_image_px: PositiveInt = 100_000_000
    """An image with more pixels (width x height) is quarantined as `too_large`, based on its
    header. So is an image that the transform would enlarge beyond this and beyond 16,777,216
    pixels."""
    max_text_bytes: PositiveInt = 2**20
    """A text with more bytes in UTF-8 is quarantined as `too_large`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the format; [csv](#csv), `delta`, `iceberg` and some installed ones have them."""
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """fsspec options (endpoint, credentials); never written to a manifest, report or log."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, name: str) -> str:
        registered(registry.SOURCES, name)
        return name

    @field_validator("where")
    @classmethod
    def _is_condition(cls, where: str | None) -> str | None:
        if where is not None:
            parse(where)
        return where

    @field_validator("input")
    @classmethod
    def _known_input(cls, name: str | None) -> str | None:
        if name is not None:
            registered(registry.INPUTS, name)
        return name

    @field_validator("pass_through")
    @classmethod
    def _named_once(
        cls, names: tuple[str, ...] | dict[str, str]
    ) -> tuple[str, ...] | dict[str, str]:
        columns = names.values() if isinstance(names, dict) else names
        if len(set(columns)) < len(columns):
            raise ValueError("name each column once")
        return names

    @field_validator("inputs")
    @classmethod
    def _are_arguments(cls, inputs: dict[str, SourceInput]) -> dict[str, SourceInput]:
        if trouble := name_trouble(inputs):
            raise ValueError(trouble)
        return inputs

    @property
    def passed(self) -> Mapping[str, str]:
        """Return `pass_through` as a mapping from published name to column of the shards."""
        names = self.pass_through
        return names if isinstance(names, dict) else {name: name for name in names}

    @property
    def parts(self) -> Mapping[str, Source]:
        """Return this section reduced to each of several inputs, by name.

        With one input, the section itself is the only part, and its name is empty.
        """
        if not self.inputs:
            return {"": self}
        fields = SourceInput.model_fields
        given = {
            name: {field: getattr(part, field) for field in fields if getattr(part, field)}
            for name, part in self.inputs.items()
        }
        return {
            name: self.model_copy(update={"inputs": {}, **values}) for name, values in given.items()
        }

    def as_published(self, table_version: int | None = None) -> dict[str, Any]:
        """Return the fields that are needed to find the original of a row, for the manifest.

        Args:
            table_version: The version of the lake table that was read.

        The location of the shards, which is in the plan, and fields that may hold secrets are
        omitted: storage options, and options of installed packages.
        """
        settings = self.settings("published")
        if self.format not in registry.built_in(registry.SOURCES):
            settings.pop("options", None)
        if table_version is not None:
            form = registry.load(registry.SOURCES, self.format)
            settings["options"] = form.pinned(self.options, table_version)
        return settings

    def settings(self, document: SettingsDocument) -> dict[str, Any]:
        """Return the fields that a document holds, without those that have their defaults.

        A field that is added leaves the fingerprints of other jobs as they are. To change a
        default, raise the number of its area in core/semantics.py.
        """
        hidden = {name for name, holders in _LISTING_FIELDS.items() if document not in holders}
        if self.is_lake_table and document != "published":
            hidden.add("options")  # they only choose the version, so files and rows
        settings = self.model_dump(mode="json", exclude_defaults=True, exclude=hidden)
        return {**settings, "where": str(self.condition)} if "where" in settings else settings

    @property
    def condition(self) -> Condition | None:
        """Return `where`, parsed; None if all rows are input."""
        return None if self.where is None else parse(self.where)

    @classmethod
    def from_published(
        cls, document: Mapping[str, Any], uri: str, storage_options: Mapping[str, Any]
    ) -> Source:
        """Return the section that `as_published` described.

        Raises:
            JobError: It is not valid here, for instance because its format is not installed.
        """
        fields = {**document, "uri": uri, "storage_options": dict(storage_options)}
        fields.pop("where", None)  # the plan has the rows
        try:
            return cls.model_validate_json(json.dumps(fields))
        except ValidationError as error:
            details = error.errors(include_url=False)[0]
            where = ".".join(["source", *map(str, details["loc"])])
            raise JobError(f"{where}: {details['msg'].removeprefix('Value error, ')}") from None

    @property
    def encoded(self) -> Encoded:
        """Return the type of encoded files, by the column, the input or the format."""
        named = [name for name in ENCODED if f"{name}_column" in self.model_fields_set]
        names = [name for name in named if getattr(self, f"{name}_column")]
        names += [self.input or "", registry.load(registry.SOURCES, self.format).holds]
        return next(ENCODED[name] for name in names if name in ENCODED)

    @property
    def extensions(self) -> tuple[str, ...]:
        """Return the extensions of members of a tar that hold the input."""
        extensions: tuple[str, ...] = getattr(self, f"{self.encoded.name}_extensions")
        return extensions

    @property
    def has_uris(self) -> bool:
        """Tell whether rows have URIs of images or clips, which are fetched."""
        return any(part.uri_column is not None for part in self.parts.values())

    @property
    def input_columns(self) -> InputColumns:
        """Return the columns that hold the input; formats without columns ignore them."""
        if self.inputs:
            names = (name for part in self.parts.values() for name in part.input_columns.names)
            return InputColumns("several", tuple(dict.fromkeys(names)))
        if self.features:
            return InputColumns("features", tuple(map(column_of, self.features)))
        if self.text_column is not None:
            pair = () if self.text_pair_column is None else (self.text_pair_column,)
            return InputColumns("text", (self.text_column, *pair, *self.prompt_columns))
        if self.uri_column is not None:
            return InputColumns("uri", (self.uri_column,))
        content = self.encoded.name
        return InputColumns(content, (getattr(self, f"{content}_column") or content,))

    @property
    def is_lake_table(self) -> bool:
        """Tell whether the shards are files of a lake table, which tells what they hold."""
        is_built_in = self.format in registry.built_in(registry.SOURCES)
        return is_built_in and registry.load(registry.SOURCES, self.format).is_lake

    @property
    def is_table(self) -> bool:
        """Tell whether the input is features alone."""
        return bool(self.features) and not self.inputs

    @property
    def input_name(self) -> str:
        """Return the registered name of the model's input."""
        content = self.input_columns.content
        return self.input or (self.encoded.name if content == "uri" else content)

    @property
    def input_parts(self) -> Mapping[str, str]:
        """Return the registered names of several inputs, by name; {} if there is one."""
        return {name: part.input_name for name, part in self.parts.items() if name}

    @model_validator(mode="after")
    def _fits_its_format(self) -> Source:
        """Refuse fields that the format does not read."""
        form = registry.load(registry.SOURCES, self.format)
        for name in _FIELDS_OF_FORMATS:
            if name in self.model_fields_set and name not in form.fields:
                hint = "; convert the shards to Parquet" if name == "where" else ""
                raise ValueError(f"{name} has no effect with format {self.format!r}{hint}")
        self._check_input_columns()
        check_options(form.Options, self.options, "options", f"format {self.format!r}")
        with extension_errors(registry.SOURCES, self.format, ValueError):
            form.check(self)
        return self

    def _check_input_columns(self) -> None:
        """Refuse columns of two types of input, and fields of another type.

        Raises:
            ValueError: It names the fields.
        """
        encoded = {f"{name}_column" for name in ENCODED} & self.model_fields_set
        given = [getattr(self, name) for name in encoded]
        given += [self.uri_column, self.features, self.text_column, self.inputs]
        if sum(map(bool, given)) > 1:
            *columns, last = (*(f"{name}_column" for name in ENCODED), *_OTHER_COLUMNS)
            raise ValueError(f"give one of {', '.join(columns)} and {last}")
        if self.inputs and self.input is not None:
            raise ValueError("input has no effect with inputs")
        content = self.input_columns.content
        if (files := ENCODED.get(self.input or "")) and content not in (files.name, "uri"):
            raise ValueError(
                f"input {files.name!r} needs {files.name}_column or uri_column, or files of "
                f"{files.what}"
            )
        contents = {part.input_columns.content for part in self.parts.values()}
        for names, needed, wanted in (
            (_FIELDS_OF_FEATURES, "features", content == "features"),
            (_FIELDS_OF_URIS, "uri_column", "uri" in contents),
            *(((f"{name}_encoding",), f"{name}_column", content == name) for name in ENCODED),
            *(
                ((f"{name}_extensions",), f"input: {name}", self.encoded.name == name)
                for name in ENCODED
            ),
            (("text_pair_column", "prompt_columns"), "text_column", content == "text"),
            (("max_text_bytes",), "text_column", "text" in contents),
        ):
            for name in names:
                if name in self.model_fields_set and not wanted:
                    raise ValueError(f"{name} has no effect without {needed}")
        for entry in self.features:
            is_index = getattr(entry, "encoding", "one_hot") == "index"
            if is_index and self.null_features == "zero" and getattr(entry, "null", "") is None:
                raise ValueError(
                    f"null_features: zero means the first category of {column_of(entry)}, "
                    "an index; give that column null: quarantine, nan or unknown"
                )
