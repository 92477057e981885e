"""Every table, once. Queries elsewhere use these classes and no dialect's own SQL.

A change here needs a new file in migrations/versions and its number in
`database.HEAD_REVISION`; a test compares the two.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """A moment. Aware in Python, UTC without offset in the database, as SQLite has no offsets."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=timezone.utc)


class Base(DeclarativeBase):
    # Named constraints: a later migration can drop them by name on every database.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ModelFile(Base):
    """What was read from one model file, valid while `size` and `mtime_ns` are the file's own."""

    __tablename__ = "model_files"

    path: Mapped[str] = mapped_column(Text, primary_key=True)
    """Absolute."""
    folder: Mapped[str] = mapped_column(String(64), index=True)
    """Key in ComfyUI's `folder_paths`."""
    size: Mapped[int] = mapped_column(BigInteger, index=True)
    """Bytes."""
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    """Lower-case hex of the whole file; None until it has been computed."""
    digest: Mapped[str | None] = mapped_column(Text)
    """JSON that the catalog made from the header; None when it could not be read."""
    digest_version: Mapped[int]
    """Version of the reader that made `digest`."""
    problem: Mapped[str | None] = mapped_column(Text)
    """Why the file cannot be read; None when it can."""
    header_hash: Mapped[str | None] = mapped_column(String(32))
    """Of the header's bytes: with size and time it knows a file that was moved."""
    autov3: Mapped[str | None] = mapped_column(String(12), index=True)
    """CivitAI's AutoV3, lower case; None until it has been computed, empty when there is none."""
    sidecar_stamp: Mapped[str | None] = mapped_column(Text)
    """Sizes and times of other tools' files beside it; None without any."""
    sidecar: Mapped[str | None] = mapped_column(Text)
    """JSON of what those files say."""
    merged: Mapped[str | None] = mapped_column(Text)
    """`digest` with what sidecars, hubs and the user say; empty when they say nothing, None when
    it has to be made anew."""
    asked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When a hub was last asked for a model with this content."""


class CatalogState(Base):
    """Counters of the catalog. `facts` grows whenever `ModelFile.merged` of any file is reset."""

    __tablename__ = "catalog_state"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class ModelEdit(Base):
    """What the user said of a file's content. Outlives the file."""

    __tablename__ = "model_edits"

    id: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(Text, index=True)
    """Where the file lay when it was last seen, absolute."""
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    """None until the file has been hashed; path, size and time find it until then."""
    trigger_words: Mapped[str | None] = mapped_column(Text)
    """JSON list; None leaves them to the other sources."""
    weight: Mapped[float | None] = mapped_column(Float(53))
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class RemoteVersionRow(Base):
    """A model version that a hub told of. `record` is the whole; the columns are for finding it."""

    __tablename__ = "remote_versions"

    hub: Mapped[str] = mapped_column(String(16), primary_key=True)
    model_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    version_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), index=True)
    base_model: Mapped[str] = mapped_column(Text, index=True)
    family: Mapped[str] = mapped_column(String(64), index=True)
    downloads: Mapped[int | None] = mapped_column(BigInteger, index=True)
    likes: Mapped[int | None] = mapped_column(BigInteger)
    words: Mapped[str] = mapped_column(Text)
    """What a search looks at: the words of name, creator, trigger words, tags and description."""
    record: Mapped[str] = mapped_column(Text)
    """JSON of `hubs.entries.RemoteVersion`; no URL in it carries a token."""
    mined: Mapped[str | None] = mapped_column(Text)
    """JSON of `MinedSettings`; None until its images were looked at."""
    met_at: Mapped[datetime] = mapped_column(UtcDateTime)
    refreshed_at: Mapped[datetime] = mapped_column(UtcDateTime)


_VERSION_KEY = ("hub", "model_id", "version_id")


def _of_version() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        _VERSION_KEY, [f"remote_versions.{column}" for column in _VERSION_KEY], ondelete="CASCADE"
    )


class RemoteFileRow(Base):
    """A file of a remote version, for finding it by content."""

    __tablename__ = "remote_files"
    __table_args__ = (_of_version(),)

    hub: Mapped[str] = mapped_column(String(16), primary_key=True)
    model_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    version_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)


class RemoteTag(Base):
    """A tag of a remote version, for finding it."""

    __tablename__ = "remote_tags"
    __table_args__ = (_of_version(),)

    hub: Mapped[str] = mapped_column(String(16), primary_key=True)
    model_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    version_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    tag: Mapped[str] = mapped_column(String(255), primary_key=True, index=True)
    """In lower case."""


class DownloadRow(Base):
    """A file that the pack itself downloaded. Nothing else is ever cleaned up."""

    __tablename__ = "downloads"

    path: Mapped[str] = mapped_column(Text, primary_key=True)
    """Absolute."""
    folder: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    hub: Mapped[str] = mapped_column(String(16))
    model_id: Mapped[str] = mapped_column(String(255))
    version_id: Mapped[str] = mapped_column(String(255))
    downloaded_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    pinned: Mapped[bool] = mapped_column(Boolean)
    """The user wants to keep it, whatever the cap."""
    packed_size: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of `<path>.gz` when the file was compressed; None when it lies there as it is."""


class GenerationRow(Base):
    """One finished run. `record` is the whole Generation; the columns are for finding it."""

    __tablename__ = "generations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    schema_version: Mapped[int]
    pack_version: Mapped[str] = mapped_column(String(64))
    mode: Mapped[str] = mapped_column(String(16))
    prompt: Mapped[str] = mapped_column(Text)
    family: Mapped[str] = mapped_column(String(64), index=True)
    seed: Mapped[str] = mapped_column(String(20))
    """Decimal text: a seed goes up to 2**64 - 1, a database's largest integer to 2**63 - 1."""
    image_key: Mapped[str] = mapped_column(String(64), index=True)
    """SHA-256 of what decides the image: two runs with the same key made the same image."""
    record: Mapped[str] = mapped_column(Text)
    """`Generation.to_json()`."""


class LoraDecision(Base):
    """One LoRA of one run, as planned. Rows are added and never changed."""

    __tablename__ = "generation_loras"

    generation_id: Mapped[str] = mapped_column(ForeignKey(GenerationRow.id), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """Order of application, from 0."""
    name: Mapped[str] = mapped_column(Text, index=True)
    """`FileRef.name`."""
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    model_strength: Mapped[float] = mapped_column(Float(53))
    clip_strength: Mapped[float] = mapped_column(Float(53))
    origin: Mapped[str] = mapped_column(String(16))
    confidence: Mapped[float] = mapped_column(Float(53))


class RatingRow(Base):
    """A person's judgement of one run. One row a run, however often it is rated."""

    __tablename__ = "ratings"

    generation_id: Mapped[str] = mapped_column(ForeignKey(GenerationRow.id), primary_key=True)
    rating: Mapped[int]
    """1 (bad) to 5 (excellent)."""
    comment: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    changes: Mapped[int] = mapped_column(index=True)
    """How often the row said something new. The sum over all rows grows with every change of
    any rating, whoever writes at the same moment."""


class RunCostRow(Base):
    """What one run cost, for predicting the next. Times in seconds, memory in bytes."""

    __tablename__ = "run_costs"

    generation_id: Mapped[str] = mapped_column(ForeignKey(GenerationRow.id), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    machine: Mapped[str] = mapped_column(String(255), index=True)
    """`MachineSpeedRow.machine`."""
    model: Mapped[str] = mapped_column(String(255), index=True)
    """Family, parameters and data type."""
    configuration: Mapped[str] = mapped_column(String(255))
    """Sizes, batch, guidance and memory strategy."""
    pixels: Mapped[int] = mapped_column(BigInteger)
    worked_out_sampling: Mapped[float] = mapped_column(Float(53))
    """From sizes and the machine's speed alone, as the other `worked_out` columns."""
    worked_out_other: Mapped[float] = mapped_column(Float(53))
    worked_out_weights: Mapped[int] = mapped_column(BigInteger)
    worked_out_working: Mapped[int] = mapped_column(BigInteger)
    sampling_seconds: Mapped[float] = mapped_column(Float(53))
    other_seconds: Mapped[float] = mapped_column(Float(53))
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """None where the peak cannot be read."""
    predicted_seconds: Mapped[float] = mapped_column(Float(53))


class MachineSpeedRow(Base):
    """What a short benchmark measured, once for each machine and data type."""

    __tablename__ = "machine_speeds"

    machine: Mapped[str] = mapped_column(String(255), primary_key=True)
    """Device, its threads, and torch's version."""
    dtype: Mapped[str] = mapped_column(String(32), primary_key=True)
    """As weights are stored; what is computed in follows from it on one machine."""
    flops: Mapped[float] = mapped_column(Float(53))
    """Operations a second."""
    bandwidth: Mapped[float] = mapped_column(Float(53))
    """Bytes a second."""
    value_bytes: Mapped[int]
    """Of one value in the data type that is computed in."""


class LanguageModelAnswer(Base):
    """What a language model said of a prompt, so that it is not asked twice."""

    __tablename__ = "language_model_answers"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the model's name, the prompt, and the form of the question."""
    answer: Mapped[str] = mapped_column(Text)
    """JSON as the model wrote it, checked before it was kept."""
    used_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class MemoryFallbackRow(Base):
    """What a configuration of a model worked with after it had run out of memory."""

    __tablename__ = "memory_fallbacks"

    machine: Mapped[str] = mapped_column(String(255), primary_key=True)
    """`MachineSpeedRow.machine`."""
    model: Mapped[str] = mapped_column(String(255), primary_key=True)
    """`RunCostRow.model`; for loads the file, with its size."""
    configuration: Mapped[str] = mapped_column(String(255), primary_key=True)
    """`RunCostRow.configuration`, or `loading`."""
    strategy: Mapped[str] = mapped_column(String(32))
    int8: Mapped[bool]
    tiled_decode: Mapped[bool]
    images_at_once: Mapped[int]
    free_bytes: Mapped[int] = mapped_column(BigInteger)
    """Of the memory that was too short, what could be had when the run began."""
    failed_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SaveIntent(Base):
    """A save under way: what a crash between the images and their record leaves behind."""

    __tablename__ = "save_intents"

    generation_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    owner_host: Mapped[str] = mapped_column(String(255))
    owner_pid: Mapped[int] = mapped_column(BigInteger)
    owner_started: Mapped[float] = mapped_column(Float(53))
    """Start of the owner process, seconds since 1970: process ids are used again."""
    directory: Mapped[str] = mapped_column(Text)
    """Absolute."""
    digests: Mapped[str] = mapped_column(Text)
    """JSON: file name to the SHA-256 of the PNG to be written there, in order."""
    record: Mapped[str] = mapped_column(Text)
    """`Generation.to_json()`, as it will be stored."""
