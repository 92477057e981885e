"""Every model version that a hub ever told of, and what the user says of files."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pydantic_core import from_json
from sqlalchemy import ColumnElement, delete, exists, insert, or_, select, update
from sqlalchemy.orm import Session

from ..errors import HubNotFoundError
from ..hubs.entries import MinedSettings, RemoteFile, RemoteVersion, SearchQuery
from ..storage import Database
from ..storage.tables import ModelEdit, RemoteFileRow, RemoteTag, RemoteVersionRow
from .merging import Edit, Said
from .scan import Found
from .store import chunks, reset, write
from .text import tokens

_MOST_FOUND = 5_000
"""Rows of the database that one search looks at, best first by the query's order."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


class VersionRecord(NamedTuple):
    """A remote version as it was last seen."""

    version: RemoteVersion
    mined: MinedSettings | None
    met_at: datetime
    refreshed_at: datetime


class Registry:
    """The remote models and the user's edits in the database. Safe to share between threads.

    What is written here is part of the entries of local files with the same content as soon as
    the catalog is next asked.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # ------------------------------------------------------------------ remote versions

    def put(self, versions: Iterable[RemoteVersion], *, now: datetime) -> None:
        """Add versions, or bring known ones up to date; mined settings and edits stay.

        Raises:
            StorageError: the database cannot be written.
        """
        unique = {_key(version): version for version in versions}

        def work(session: Session) -> None:
            for key, version in unique.items():
                self._put(session, key, version, now)

        if unique:
            write(self._database, work)

    def _put(self, session: Session, key: Key, version: RemoteVersion, now: datetime) -> None:
        known = session.get(RemoteVersionRow, key)
        if known is not None:
            version = _with_known_hashes(version, _unpack(known.record))
        values = _values(version)
        if known is not None and known.record == values["record"]:
            known.refreshed_at = now
            return
        hashes = {file.sha256.lower() for file in version.files if file.sha256}
        before = set(session.scalars(select(RemoteFileRow.sha256).where(*_is(RemoteFileRow, key))))
        if known is None:
            session.execute(
                insert(RemoteVersionRow).values(
                    **_key_values(key), **values, met_at=now, refreshed_at=now
                )
            )
        else:
            for name, value in values.items():
                setattr(known, name, value)
            known.refreshed_at = now
        for table, column, items in (
            (RemoteFileRow, "sha256", hashes),
            (RemoteTag, "tag", {" ".join(tokens(tag))[:255] for tag in version.tags} - {""}),
        ):
            session.execute(delete(table).where(*_is(table, key)))
            if items:
                rows = [{**_key_values(key), column: item} for item in sorted(items)]
                session.execute(insert(table), rows)
        reset(session, hashes | before)

    def get(self, hub: str, model_id: str, version_id: str) -> VersionRecord:
        """One version.

        Raises:
            HubNotFoundError: it was never met.
        """
        with self._database.session(read_only=True) as session:
            row = session.get(RemoteVersionRow, (hub, model_id, version_id))
        if row is None:
            raise HubNotFoundError(
                f"The catalog does not know {hub} model {model_id}, version {version_id}. "
                "Search for it, or look it up on the hub."
            )
        return _record(row)

    def versions(self, hub: str, model_id: str) -> list[VersionRecord]:
        """The known versions of one model, newest met first."""
        query = (
            select(RemoteVersionRow)
            .where(RemoteVersionRow.hub == hub, RemoteVersionRow.model_id == model_id)
            .order_by(RemoteVersionRow.met_at.desc(), RemoteVersionRow.version_id.desc())
        )
        with self._database.session(read_only=True) as session:
            return [_record(row) for row in session.scalars(query)]

    def numbered(self, hub: str, version_id: str) -> list[VersionRecord]:
        """The known versions with this id, whatever model they belong to."""
        row = RemoteVersionRow
        query = select(row).where(row.hub == hub, row.version_id == version_id)
        with self._database.session(read_only=True) as session:
            return [_record(found) for found in session.scalars(query)]

    def with_content(self, hashes: Iterable[str]) -> dict[str, list[VersionRecord]]:
        """The versions that offer files with these SHA-256, CivitAI's first, oldest first."""
        with self._database.session(read_only=True) as session:
            return _with_content(session, list(hashes))

    def remove(self, hub: str, model_id: str, version_id: str) -> bool:
        """Forget a version; whether it was known. Files and edits stay."""
        key = (hub, model_id, version_id)

        def work(session: Session) -> bool:
            hashes = select(RemoteFileRow.sha256).where(*_is(RemoteFileRow, key))
            reset(session, session.scalars(hashes).all())
            for table in (RemoteFileRow, RemoteTag):
                session.execute(delete(table).where(*_is(table, key)))
            done = session.execute(delete(RemoteVersionRow).where(*_is(RemoteVersionRow, key)))
            return bool(done.rowcount)  # pyright: ignore[reportAttributeAccessIssue]

        return write(self._database, work)

    def set_mined(
        self, hub: str, model_id: str, version_id: str, mined: MinedSettings | None
    ) -> None:
        """Keep what the sample images of a known version were made with."""
        key = (hub, model_id, version_id)
        text = None if mined is None else json.dumps(mined._asdict())

        def work(session: Session) -> None:
            session.execute(
                update(RemoteVersionRow).where(*_is(RemoteVersionRow, key)).values(mined=text)
            )
            hashes = select(RemoteFileRow.sha256).where(*_is(RemoteFileRow, key))
            reset(session, session.scalars(hashes).all())

        write(self._database, work)

    def find(self, query: SearchQuery) -> list[RemoteVersion]:
        """The known versions for which all that the query says holds, in its order. Without its
        limit, task, library and cursor; not yet filtered for safety."""
        row = RemoteVersionRow
        wanted: list[ColumnElement[bool]] = []
        if query.kind:
            wanted.append(row.kind == query.kind)
        if query.families:
            wanted.append(row.family.in_(query.families))
        elif query.base_models:
            wanted.append(row.base_model.in_(query.base_models))
        for tag in query.tags:
            wanted.append(
                exists().where(
                    RemoteTag.hub == row.hub,
                    RemoteTag.model_id == row.model_id,
                    RemoteTag.version_id == row.version_id,
                    RemoteTag.tag == " ".join(tokens(tag)),
                )
            )
        # Words are stored between blanks: a word of the query is the start of one.
        wanted += [row.words.contains(f" {word}", autoescape=True) for word in tokens(query.text)]
        newest = row.met_at.desc()
        order = {"downloads": row.downloads, "likes": row.likes}.get(query.sort)
        best = (newest,) if order is None else (order.is_(None), order.desc(), newest)
        with self._database.session(read_only=True) as session:
            records = session.connection().execute(
                select(row.record).where(*wanted).order_by(*best, row.hub, row.model_id)
                .limit(_MOST_FOUND)
            )  # fmt: skip
            return [_unpack(record) for (record,) in records]

    # ------------------------------------------------------------------ edits

    def edit(self, file: Found, sha256: str | None, edit: Edit, *, now: datetime) -> None:
        """Keep what the user says of a file, in place of what was said before; an empty edit
        removes it. It follows the file's content once that has been hashed."""

        def work(session: Session) -> None:
            session.execute(delete(ModelEdit).where(_edits_of(file, sha256)))
            if edit != Edit():
                words = edit.trigger_words
                session.add(
                    ModelEdit(
                        path=file.path,
                        size=file.size,
                        mtime_ns=file.mtime_ns,
                        sha256=sha256,
                        trigger_words=None if words is None else json.dumps(words),
                        weight=edit.weight,
                        updated_at=now,
                    )
                )
            reset(session, [sha256] if sha256 else (), [file.path])

        write(self._database, work)

    def edit_of(self, file: Found, sha256: str | None) -> Edit:
        """What the user said of a file; empty when nothing."""
        return self.said([Asked(file, sha256, None)]).get(file.path, Said()).edit

    # ------------------------------------------------------------------ for the catalog

    def said(self, files: Sequence[Asked]) -> Mapping[str, Said]:
        """What hubs and user say of files; by path, and only for those of which anything is
        said. Sidecars are not part of it."""
        hashes = sorted({sha256 for asked in files for sha256 in asked[1:] if sha256})
        with self._database.session(read_only=True) as session:
            by_hash, by_state = _edits(session, hashes, [asked.file.path for asked in files])
            versions = _with_content(session, hashes)
        found: dict[str, Said] = {}
        for file, sha256, hint in files:
            edit = by_hash.get(sha256 or "") or by_state.get((file.path, file.size, file.mtime_ns))
            records = versions.get(sha256 or hint or "", ())
            if edit or records:
                found[file.path] = Said(
                    edit=edit or Edit(),
                    versions=tuple(record.version for record in records),
                    mined=next((record.mined for record in records if record.mined), None),
                )
        return found


class Asked(NamedTuple):
    """A file of which `Registry.said` is asked."""

    file: Found
    sha256: str | None
    hint: str | None
    """The hash another tool noted; stands in for `sha256` where that is not known, to find
    what hubs say."""


Key = tuple[str, str, str]


def _key(version: RemoteVersion) -> Key:
    return version.hub, version.model_id, version.version_id


def _key_values(key: Key) -> dict[str, str]:
    return dict(zip(("hub", "model_id", "version_id"), key, strict=True))


def _is(table: Any, key: Key) -> list[ColumnElement[bool]]:
    return [getattr(table, column) == value for column, value in _key_values(key).items()]


def _values(version: RemoteVersion) -> dict[str, Any]:
    texts = (
        *(version.name, version.creator, *version.trigger_words, *version.tags),
        version.description,
    )
    record = version._asdict() | {"files": [file._asdict() for file in version.files]}
    return {
        "kind": version.kind,
        "base_model": version.base_model,
        "family": version.family,
        "downloads": version.downloads,
        "likes": version.likes,
        "words": f" {' '.join(word for text in texts for word in tokens(text))} ",
        "record": json.dumps(record, ensure_ascii=False, separators=(",", ":")),
    }


def _with_known_hashes(version: RemoteVersion, known: RemoteVersion) -> RemoteVersion:
    # A search answers with less than a look-up: what it leaves out is kept for the same file. A
    # branch can move, so there only a file of the same size is the same.
    fixed = version.hub == "civitai" or _COMMIT.fullmatch(version.version_id) is not None
    before = {file.name: file for file in known.files if file.sha256}
    files = []
    for file in version.files:
        old = before.get(file.name)
        if (
            old is not None
            and file.sha256 is None
            and (file.size == old.size if file.size is not None else fixed)
        ):
            file = file._replace(sha256=old.sha256, size=old.size)
        files.append(file)
    return version._replace(files=tuple(files))


def _unpack(record: str) -> RemoteVersion:
    values = from_json(record)
    files = tuple(RemoteFile(**_known(RemoteFile, file)) for file in values.pop("files"))
    return RemoteVersion(files=files, **_known(RemoteVersion, values))


def _known(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if type(value) is list else value
        for name, value in values.items()
        if name in kind._fields  # written by another version of the pack
    }


def _record(row: RemoteVersionRow) -> VersionRecord:
    return VersionRecord(_unpack(row.record), _mined(row.mined), row.met_at, row.refreshed_at)


def _mined(text: str | None) -> MinedSettings | None:
    return MinedSettings(**_known(MinedSettings, from_json(text))) if text else None


def _with_content(session: Session, hashes: Sequence[str]) -> dict[str, list[VersionRecord]]:
    found: defaultdict[str, list[VersionRecord]] = defaultdict(list)
    for chunk in chunks(hashes):
        query = select(RemoteFileRow.sha256, RemoteVersionRow).join(
            RemoteVersionRow,
            (RemoteFileRow.hub == RemoteVersionRow.hub)
            & (RemoteFileRow.model_id == RemoteVersionRow.model_id)
            & (RemoteFileRow.version_id == RemoteVersionRow.version_id),
        )
        for sha256, row in session.execute(query.where(RemoteFileRow.sha256.in_(chunk))):
            found[sha256].append(_record(row))
    for records in found.values():
        records.sort(key=lambda record: _age(record.version))
    return found


def _age(version: RemoteVersion) -> tuple[bool, bool, int, str]:
    # CivitAI numbers its versions in order of time.
    number = int(version.version_id) if version.version_id.isdecimal() else 0
    return version.hub != "civitai", not number, number, version.model_id


def _edits_of(file: Found, sha256: str | None) -> ColumnElement[bool]:
    here = (ModelEdit.path == file.path) & ModelEdit.sha256.is_(None)
    return here if sha256 is None else or_(here, ModelEdit.sha256 == sha256)


State = tuple[str, int, int]


def _edits(
    session: Session, hashes: Iterable[str], paths: Sequence[str]
) -> tuple[dict[str, Edit], dict[State, Edit]]:
    by_hash: dict[str, Edit] = {}
    by_state: dict[State, Edit] = {}
    for column, values in ((ModelEdit.sha256, sorted(hashes)), (ModelEdit.path, paths)):
        for chunk in chunks(values):
            query = select(ModelEdit).where(column.in_(chunk)).order_by(ModelEdit.updated_at)
            for row in session.scalars(query):
                words = row.trigger_words
                edit = Edit(None if words is None else tuple(from_json(words)), row.weight)
                if row.sha256:
                    by_hash[row.sha256] = edit
                else:
                    by_state[row.path, row.size, row.mtime_ns] = edit
    return by_hash, by_state
