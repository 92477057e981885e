"""A generation on disk: its images and its record, both or neither, also across a crash.

The protocol, which `recover` completes when the process dies anywhere in it:

1. A `SaveIntent` is committed: who saves, the file names, the digest of each PNG, the record.
2. Each name is taken by a small reservation file, so that no other process writes there.
3. Each PNG is written under a temporary name, flushed to disk, and renamed over its reservation.
4. In one transaction the record is added and the intent removed.

What is complete on disk is kept and recorded; everything else is removed. A PNG is complete,
and ours, when its digest is the intent's.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import psutil
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ..errors import PlanError, SaveError, StorageError
from ..plan import Concessions, Generation, ImageFile, SamplingPlan
from ..storage import Database
from ..storage.tables import GenerationRow, LoraDecision, SaveIntent
from .png import RECORD_KEY, encode_png

_log = logging.getLogger(__name__)

FOREIGN_OWNER_PATIENCE = timedelta(hours=1)
"""A save takes seconds. One that another computer began this long ago has ended."""

_CLOCK_SLACK_SECONDS = 2.0
"""A process's start time, read twice, may differ when the clock was set in between."""


_NO_SUCH_NAME = (errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL)
"""Errors of opening a file that is not there, or cannot be under such a name."""

_NO_FOLDER_SYNC = (errno.EBADF, errno.EINVAL, errno.ENOTSUP)
"""Errors of flushing a folder where the file system, such as a network share, cannot."""


class SaveLocation(NamedTuple):
    """Where images go, as ComfyUI's `folder_paths.get_save_image_path` says."""

    directory: Path
    """Absolute, exists."""
    subfolder: str
    """`directory` below ComfyUI's output or temp folder."""
    type: Literal["output", "temp"]
    stem: str
    """File name without counter; `%batch_num%` in it becomes the image's number, from 0."""
    counter: int
    """Number of the first file. Later ones are taken where a file is in the way."""


class Owner(NamedTuple):
    """A process, told apart from a later one with the same id."""

    host: str
    pid: int
    started: float
    """Seconds since 1970."""


class Recovered(NamedTuple):
    """What was done about a save that a crash had ended."""

    generation_id: str
    kept: tuple[str, ...]
    """File names, now in the record. Empty: there is no record."""
    dropped: tuple[str, ...]
    """File names that were planned and never completed."""


class _Sketch(NamedTuple):
    """A save under way, as its intent has it."""

    generation: Generation
    directory: Path
    digests: Mapping[str, str]

    def part(self, name: str) -> Path:
        # Not from `name`, which may be as long as the file system allows.
        index = list(self.digests).index(name)
        return self.directory / f".{self.generation.id}-{index}.part"

    @property
    def reservation(self) -> bytes:
        return f"Reserved by Intelligent Generation for {self.generation.id}.\n".encode()


def save_generation(
    database: Database,
    generation: Generation,
    images: Sequence[np.ndarray],
    location: SaveLocation | None,
    host_text: Mapping[str, str],
    *,
    embed_metadata: bool,
    now: datetime,
    checkpoint: Callable[[str], None] = lambda step: None,
) -> Generation:
    """Save the images and the record of a generation; no existing file is overwritten.

    Args:
        images: each uint8, height x width x 3.
        location: None stores the record alone.
        host_text: ComfyUI's own text chunks, `prompt` and `workflow` as JSON text.
        embed_metadata: False leaves all text out of the PNG (ComfyUI's --disable-metadata).
        now: aware.
        checkpoint: called after every step with its name; what it raises ends the save.

    Returns:
        The generation with its `images` filled in.

    Raises:
        SaveError: an image could not be written. Images completed before it are kept and
            recorded; of the others nothing is left.
        StorageError: the database could not be written. If images were complete by then, the
            next start records them.
    """
    if location is None:
        with database.session() as session:
            _add_record(session, generation)
        return generation

    counter = location.counter
    while True:
        names, counter = _free_names(location, len(images), counter)
        saved = generation.model_copy(
            update={
                "images": tuple(
                    ImageFile(filename=name, subfolder=location.subfolder, type=location.type)
                    for name in names
                )
            }
        )
        text = {**host_text, RECORD_KEY: saved.to_json()} if embed_metadata else {}
        pngs = {name: encode_png(image, text) for name, image in zip(names, images, strict=True)}
        digests = {name: hashlib.sha256(png).hexdigest() for name, png in pngs.items()}
        sketch = _Sketch(saved, location.directory, digests)
        _declare(database, sketch, now)
        try:
            checkpoint("declared")
            if not _reserve(sketch):
                counter += 1
                continue
            checkpoint("reserved")
            for name, png in pngs.items():
                _write(sketch.part(name), png)
                checkpoint(f"written {name}")
                sketch.part(name).replace(sketch.directory / name)
                checkpoint(f"named {name}")
            _sync(sketch.directory)
            checkpoint("complete")
            with database.session() as session:
                _add_record(session, saved)
                session.execute(_intent_of(saved.id))
        except BaseException as error:
            kept: tuple[str, ...] = ()
            with suppress(StorageError, OSError):  # then the next start's `recover` does it
                kept = _settle(database, sketch).kept
            if isinstance(error, OSError):
                raise _cannot_save(error, sketch, kept) from error
            raise
        return saved


def recover(
    database: Database, *, now: datetime, alive: Callable[[Owner], bool] | None = None
) -> tuple[Recovered, ...]:
    """Complete the saves that a crash cut short. For the first use of the database in a process.

    Saves of processes that are still alive are left alone, as are those of another computer
    whose files are not here. What was done is logged and returned. Doing it again, or in two
    processes at once, does no harm.

    Args:
        now: aware.
        alive: whether a process of this computer still runs; by default asks the system.

    Raises:
        StorageError: the database cannot be read or written.
    """
    alive = alive or _alive
    with database.session(read_only=True) as session:
        intents = session.scalars(select(SaveIntent)).all()
    done: list[Recovered] = []
    for intent in intents:
        owner = Owner(intent.owner_host, intent.owner_pid, intent.owner_started)
        try:
            record = Generation.from_json(intent.record)
        except PlanError as error:
            _log.warning(
                "The save of generation %s was cut short and is left as it is: %s",
                intent.generation_id,
                error,
            )
            continue
        sketch = _Sketch(record, Path(intent.directory), json.loads(intent.digests))
        if owner.host == socket.gethostname():
            ended = not alive(owner) and sketch.directory.is_dir()
        else:
            ended = now - intent.started_at > FOREIGN_OWNER_PATIENCE and _left_files(sketch)
        if not ended:
            continue
        try:
            result = _settle(database, sketch)
        except OSError as error:
            _log.warning(
                "The save of generation %s was cut short and cannot be put right: %s. Make the "
                "folder writable; the next start tries again.",
                intent.generation_id,
                error,
            )
            continue
        _log.warning(
            "The save of generation %s in %s was cut short. Kept and recorded: %s. Never "
            "completed: %s.",
            result.generation_id,
            sketch.directory,
            ", ".join(result.kept) or "nothing",
            ", ".join(result.dropped) or "nothing",
        )
        done.append(result)
    return tuple(done)


def load_generation(database: Database, generation_id: str) -> Generation | None:
    """The record with this id; None when there is none.

    Raises:
        StorageError: the database cannot be read.
        PlanError: the record was made by a newer version of the pack.
    """
    with database.session(read_only=True) as session:
        row = session.get(GenerationRow, generation_id.strip())
    return None if row is None else Generation.from_json(row.record)


def recent(database: Database, limit: int) -> tuple[Generation, ...]:
    """The latest `limit` records, newest first; by id within a second. Raises as
    `load_generation` does."""
    query = (
        select(GenerationRow.record)
        .order_by(GenerationRow.created_at.desc(), GenerationRow.id.desc())
        .limit(limit)
    )
    with database.session(read_only=True) as session:
        return tuple(Generation.from_json(record) for record in session.scalars(query))


def image_key(generation: Generation) -> str:
    """SHA-256 (hex) of all that decides the image: files by hash, LoRA strengths, texts, sampling
    and seed. The same for two runs exactly when their images are the same on one machine.

    A model that other nodes made or patched has a key of its own each time, as its record cannot
    say what it was.
    """
    plan = generation.plan
    files = [[part.role, [file.sha256 for file in part.files]] for part in plan.model.parts]
    known = all(hashes and all(hashes) for _, hashes in files) and all(
        lora.file.sha256 for lora in plan.loras.loras
    )
    decides = {
        "model": files,
        "unknown": None if known and not plan.model.carried_patches else generation.id,
        "loras": [
            [lora.file.sha256, lora.model_strength, lora.clip_strength] for lora in plan.loras.loras
        ],
        "positive": plan.loras.segments,
        "negative": plan.analysis.negative_segments,
        "sampling": plan.sampling.model_dump(include=set(SamplingPlan.DECISIVE)),
        "seed": plan.seed,
    }
    if plan.model.weight_dtype != "auto":
        decides["weights"] = plan.model.weight_dtype
    if plan.concessions != Concessions():
        decides["concessions"] = plan.concessions.model_dump()
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------- names and files


def _free_names(location: SaveLocation, count: int, counter: int) -> tuple[list[str], int]:
    while True:
        names = [
            f"{location.stem.replace('%batch_num%', str(index))}_{counter + index:05}_.png"
            for index in range(count)
        ]
        if not any(os.path.lexists(location.directory / name) for name in names):
            return names, counter
        counter += 1


def _reserve(sketch: _Sketch) -> bool:
    reserved: list[Path] = []
    for name in sketch.digests:
        try:
            with (sketch.directory / name).open("xb") as file:
                reserved.append(sketch.directory / name)
                file.write(sketch.reservation)
        except FileExistsError:
            for path in reserved:
                path.unlink()
            return False
    return True


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    # A rename is on disk once its folder is. Windows has no such call and needs none.
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _is_complete(path: Path, digest: str) -> bool:
    content = _content(path)
    return content is not None and hashlib.sha256(content).hexdigest() == digest


def _is_reservation(path: Path, reservation: bytes) -> bool:
    content = _content(path, len(reservation) + 1)
    # A crash or a full disk may have cut it short.
    return content is not None and reservation.startswith(content)


def _content(path: Path, limit: int = -1) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        if error.errno in _NO_SUCH_NAME:
            return None
        raise


def _left_files(sketch: _Sketch) -> bool:
    return any(
        sketch.part(name).exists()
        or _is_complete(sketch.directory / name, digest)
        or _is_reservation(sketch.directory / name, sketch.reservation)
        for name, digest in sketch.digests.items()
    )


def _cannot_save(error: OSError, sketch: _Sketch, kept: Sequence[str]) -> SaveError:
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        advice = "Free space on its disk, or save elsewhere, and queue again."
    elif error.errno in _NO_SUCH_NAME:
        advice = "See that the folder exists and that its disk can hold a file of the name in "
        advice += "filename_prefix, and queue again."
    else:
        advice = "Make the folder writable, or save elsewhere, and queue again."
    done = f" Saved before that: {', '.join(kept)}." if kept else " No file was left there."
    return SaveError(
        f"An image could not be saved in {sketch.directory}: {error.strerror or error}.{done} "
        + advice
    )


# --------------------------------------------------------------------------- the database


def _declare(database: Database, sketch: _Sketch, now: datetime) -> None:
    owner = _this_process()
    with database.session() as session:
        session.merge(
            SaveIntent(
                generation_id=sketch.generation.id,
                started_at=now,
                owner_host=owner.host,
                owner_pid=owner.pid,
                owner_started=owner.started,
                directory=str(sketch.directory),
                digests=json.dumps(sketch.digests),
                record=sketch.generation.to_json(),
            )
        )


def _settle(database: Database, sketch: _Sketch) -> Recovered:
    """Keep and record what is complete, remove the rest and the intent."""
    kept: list[str] = []
    for name, digest in sketch.digests.items():
        sketch.part(name).unlink(missing_ok=True)
        path = sketch.directory / name
        if _is_complete(path, digest):
            kept.append(name)
        elif _is_reservation(path, sketch.reservation):
            path.unlink()
    with database.session() as session:
        if session.get(SaveIntent, sketch.generation.id) is not None:
            session.execute(_intent_of(sketch.generation.id))
            if kept:
                images = tuple(i for i in sketch.generation.images if i.filename in kept)
                _add_record(session, sketch.generation.model_copy(update={"images": images}))
    dropped = tuple(name for name in sketch.digests if name not in kept)
    return Recovered(sketch.generation.id, tuple(kept), dropped)


def _intent_of(generation_id: str):
    return delete(SaveIntent).where(SaveIntent.generation_id == generation_id)


def _add_record(session: Session, generation: Generation) -> None:
    plan = generation.plan
    created_at = datetime.fromisoformat(generation.created_at.replace("Z", "+00:00"))
    session.add(
        GenerationRow(
            id=generation.id,
            created_at=created_at if created_at.tzinfo else created_at.replace(tzinfo=timezone.utc),
            schema_version=generation.schema_version,
            pack_version=generation.pack_version,
            mode=generation.mode,
            prompt=plan.analysis.prompt,
            family=plan.model.family,
            seed=str(plan.seed),
            image_key=image_key(generation),
            record=generation.to_json(),
        )
    )
    session.flush()  # the LoRAs refer to it
    session.add_all(
        LoraDecision(
            generation_id=generation.id,
            position=position,
            name=lora.file.name,
            sha256=lora.file.sha256,
            model_strength=lora.model_strength,
            clip_strength=lora.clip_strength,
            origin=lora.origin,
            confidence=lora.confidence,
        )
        for position, lora in enumerate(plan.loras.loras)
    )


# --------------------------------------------------------------------------- processes


def _this_process() -> Owner:
    process = psutil.Process()
    return Owner(socket.gethostname(), process.pid, process.create_time())


def _alive(owner: Owner) -> bool:
    try:
        process = psutil.Process(owner.pid)
        same = abs(process.create_time() - owner.started) <= _CLOCK_SLACK_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
