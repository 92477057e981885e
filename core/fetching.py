"""From what a person pastes to files on disk: what is known first, then the hubs, then a download.

Imports nothing of ComfyUI: folders, time and the interrupt come in as arguments.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from .catalog import Catalog, DiskCache, family_of_base_model, read_header
from .errors import DownloadError, HubAccessError, HubError, ModelFileError, SettingError
from .hubs import (
    Civitai,
    CivitaiReference,
    Credentials,
    DiffusersPart,
    Effects,
    HashReference,
    Hub,
    HuggingFace,
    HuggingFaceReference,
    Pace,
    Reference,
    RemoteFile,
    RemoteVersion,
    SafetyRules,
    blocked_by,
    diffusers_files,
    parse_reference,
)
from .hubs.civitai import ENDPOINT as CIVITAI
from .hubs.download import (
    Downloaded,
    DownloadProgress,
    DownloadRequest,
    download,
    progress_line,
    safe_name,
)
from .hubs.http import REQUESTS_PER_SECOND, Http, never
from .hubs.huggingface import ENDPOINT as HUGGINGFACE
from .hubs.joining import join, joined_from
from .hubs.wording import size_in_words, terms
from .plan import FileRef, RemoteLora

log = logging.getLogger(__name__)

Use = Literal["model", "lora"]
"""What the files are for: to be loaded as a model, or applied to one."""

_FOLDERS = {
    "checkpoint": "checkpoints",
    "diffusion_model": "diffusion_models",
    "text_encoder": "text_encoders",
    "vae": "vae",
    "lora": "loras",
}
"""ComfyUI's folder key of each kind."""

_FOLDERS_BY_PATH = {
    "checkpoints": "checkpoints",
    "diffusion_models": "diffusion_models",
    "unet": "diffusion_models",
    "transformer": "diffusion_models",
    "text_encoders": "text_encoders",
    "text_encoder": "text_encoders",
    "text_encoder_2": "text_encoders",
    "text_encoder_3": "text_encoders",
    "clip": "text_encoders",
    "vae": "vae",
    "loras": "loras",
    "lora": "loras",
}
"""What folders in Hugging Face repositories hold, as diffusers and ComfyUI's own name them."""

_MODELS = ("checkpoints", "diffusion_models")
_USABLE: dict[Use, tuple[str, ...]] = {
    "model": (*_MODELS, "text_encoders", "vae"),
    "lora": ("loras",),
}
_ASKED_FOR = SafetyRules(allow_nsfw=True)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STRENGTH = re.compile(r"[+-]?(\d{1,3}(\.\d*)?|\.\d+)")
MAX_STRENGTH = 100
"""As of ComfyUI's own LoraLoader."""
_LOADED = (".safetensors", ".sft")
_TICK = 0.2  # seconds between two looks at a lock


class Wanted(NamedTuple):
    """One file of a hub and its place here."""

    version: RemoteVersion
    file: RemoteFile
    folder: str
    """ComfyUI's folder key."""
    name: str
    """Below that folder, with forward slashes."""
    pieces: tuple[RemoteFile, ...] = ()
    """What the hub has in place of `file`, which they are put together to."""

    @property
    def reference(self) -> CivitaiReference | HuggingFaceReference:
        """What names this very file."""
        version, file = self.version, self.file
        if version.hub == "huggingface":
            return HuggingFaceReference(version.model_id, version.version_id, file.name)
        file_id = None if file.primary else file.file_id
        return CivitaiReference(int(version.model_id), int(version.version_id), file_id)

    @property
    def ref(self) -> FileRef:
        """Where it will be, and by what it will be known."""
        return FileRef(
            folder=self.folder, name=self.name, size=self.file.size, sha256=self.file.sha256
        )

    @property
    def remote(self) -> RemoteLora:
        """For a plan that it is a pending LoRA of."""
        version = self.version
        return RemoteLora(
            hub=version.hub,
            reference=str(self.reference),
            size=_size(self.file),
            base_model=version.base_model,
            licence=version.licence,
            creator=version.creator,
            page=version.page,
        )


class Fetched(NamedTuple):
    """The files that one reference means, all on disk."""

    files: tuple[FileRef, ...]
    downloaded: tuple[Wanted, ...]
    """Those of them that were not there before."""


class Fetcher:
    """Finds and fetches what references name. Safe to use from several threads.

    Args:
        catalog: knows the files on disk and what hubs said before.
        cache: is told of each file that is downloaded or used.
        credentials: the hubs' tokens.
        folders: ComfyUI's directories for a folder key; files go into the first, but into
            `diffusion_models` rather than the older `unet` beside it.
        civitai, huggingface: base addresses.
        version: the pack's, for the User-Agent.
        per_second: requests to each hub, at most.
    """

    def __init__(
        self,
        catalog: Catalog,
        cache: DiskCache,
        credentials: Credentials,
        folders: Callable[[str], Sequence[Path]],
        *,
        civitai: str = CIVITAI,
        huggingface: str = HUGGINGFACE,
        version: str = "0",
        per_second: float = REQUESTS_PER_SECOND,
    ) -> None:
        self._catalog = catalog
        self._cache = cache
        self._credentials = credentials
        self._folders = folders
        self._addresses: dict[Hub, str] = {"civitai": civitai, "huggingface": huggingface}
        self._version = version
        self._http = Http()
        self._paces: dict[Hub, Pace] = {hub: Pace(per_second) for hub in self._addresses}

    def civitai(self, stop: Callable[[], None] = never) -> Civitai:
        """A client that ends when `stop` raises."""
        return Civitai(
            family_of=family_of_base_model,
            token=lambda: self._credentials.token("civitai"),
            address=self._addresses["civitai"],
            http=self._http,
            pace=self._paces["civitai"],
            effects=Effects(stop=stop),
        )

    def huggingface(self, stop: Callable[[], None] = never) -> HuggingFace:
        """A client that ends when `stop` raises."""
        return HuggingFace(
            family_of=family_of_base_model,
            token=lambda: self._credentials.token("huggingface"),
            address=self._addresses["huggingface"],
            pace=self._paces["huggingface"],
            effects=Effects(stop=stop),
            version=self._version,
        )

    def fetch(
        self,
        references: Sequence[Reference],
        use: Use,
        *,
        allow: bool,
        leave_out: frozenset[str] = frozenset(),
        on_share: Callable[[float], object] = lambda share: None,
        on_text: Callable[[str], object] = lambda text: None,
        stop: Callable[[], None] = never,
    ) -> tuple[Fetched, ...]:
        """Make the files of each reference present.

        What is on disk is found by its hash, else by folder and name, and costs no request when
        a hub told of it before. Nothing is downloaded before everything is known.

        Args:
            use: what they are for; another kind of file is refused.
            allow: whether missing files may be downloaded.
            leave_out: folder keys of which a repository of several files gives nothing, because
                the user chose other files.
            on_share: called with the share of all bytes to download that is there, 0 to 1.
            on_text: called with the bytes, speed and time left of the file that comes now.
            stop: raises to end it; what was fetched is kept and goes on the next time.

        Raises:
            SettingError: files are missing and `allow` is off (the message says what would be
                downloaded), or a reference names another kind of file.
            HubError: see `Civitai.resolve`, `HuggingFace.resolve` and `download`.
        """
        settled = self.settle(references, use, leave_out=leave_out, stop=stop)
        return self.bring(settled, allow=allow, on_share=on_share, on_text=on_text, stop=stop)

    def bring(
        self,
        settled: Sequence[Sequence[FileRef | Wanted]],
        *,
        allow: bool,
        on_share: Callable[[float], object] = lambda share: None,
        on_text: Callable[[str], object] = lambda text: None,
        stop: Callable[[], None] = never,
    ) -> tuple[Fetched, ...]:
        """Download what `settle` found missing. Arguments and errors are those of `fetch`."""
        missing = list(dict.fromkeys(item for items in settled for item in items
                                     if isinstance(item, Wanted)))  # fmt: skip
        if missing and not allow:
            raise SettingError(_not_allowed(missing))
        share = _Share(missing, on_share, on_text)
        there = {wanted: self._download(wanted, share, stop) for wanted in missing}
        fetched = tuple(
            Fetched(
                tuple(there[item] if isinstance(item, Wanted) else item for item in items),
                tuple(item for item in items if isinstance(item, Wanted)),
            )
            for items in settled
        )
        self._cache.touch(self._catalog.path(file) for one in fetched for file in one.files)
        return fetched

    # ------------------------------------------------------------------ looking

    def settle(
        self,
        references: Sequence[Reference],
        use: Use,
        *,
        leave_out: frozenset[str] = frozenset(),
        stop: Callable[[], None] = never,
    ) -> tuple[tuple[FileRef | Wanted, ...], ...]:
        """For each file of each reference where it is, or what would be downloaded; nothing is.
        Arguments and errors are those of `fetch`."""
        return tuple(self._settle(reference, use, leave_out, stop) for reference in references)

    def offered(
        self, version: RemoteVersion, use: Use, *, stop: Callable[[], None] = never
    ) -> Wanted | None:
        """The main file of a version that a search found; None when it is on disk, cannot be
        had by this account, or is not of the wanted use. Asks no hub."""
        if version.gated:
            return None
        try:
            (wanted,) = self._choose(version, _reference(version), use, frozenset())
            found = self._find(wanted, stop) or self._elsewhere(wanted, stop)
        except (HubError, SettingError, ValueError):
            return None
        return found if isinstance(found, Wanted) else None

    def _settle(
        self,
        reference: Reference,
        use: Use,
        leave_out: frozenset[str],
        stop: Callable[[], None],
    ) -> tuple[FileRef | Wanted, ...]:
        """For each file of the reference where it is, or what to download."""
        if present := self._known(reference, use, leave_out, stop):
            return present
        if isinstance(reference, HuggingFaceReference):
            version = self.huggingface(stop).resolve(reference)
        else:
            version = self.civitai(stop).resolve(reference)
        # The user asked for this very one: only what is never allowed is refused here.
        if reason := blocked_by(version, _ASKED_FOR):
            raise HubAccessError(f"{version.name} ({version.page}) is not used: {reason}.")
        self._catalog.remember([version])
        wanted = self._choose(version, reference, use, leave_out)
        return tuple(self._find(one, stop) or self._elsewhere(one, stop) for one in wanted)

    def _known(
        self,
        reference: Reference,
        use: Use,
        leave_out: frozenset[str],
        stop: Callable[[], None],
    ) -> tuple[FileRef, ...] | None:
        """The files when they are all here and it is clear without a request which they are."""
        if isinstance(reference, HashReference):
            files = self._catalog.with_hash(reference.value)
            return next(((file,) for file in files if file.folder in _USABLE[use]), None)
        options: dict[tuple[object, ...], tuple[Wanted, ...]] = {}
        for version in self._recorded(reference):
            if blocked_by(version, _ASKED_FOR):
                continue
            try:
                wanted = self._choose(version, reference, use, leave_out)
            except (HubError, SettingError):
                continue  # the hub may know better by now, and says why if not
            options.setdefault(tuple(one.file.sha256 or one.file for one in wanted), wanted)
        if len(options) != 1:
            return None
        found = [self._find(one, stop) for one in next(iter(options.values()))]
        return tuple(file for file in found if file) if all(found) else None

    def _recorded(self, reference: CivitaiReference | HuggingFaceReference) -> list[RemoteVersion]:
        registry = self._catalog.registry
        if isinstance(reference, HuggingFaceReference):
            # Where a branch pointed is not recorded; only `main` may stay what it was.
            if reference.revision and not _COMMIT.fullmatch(reference.revision):
                return []
            records = registry.versions("huggingface", reference.repo)
            wanted = reference.revision
        else:
            version = reference.version_id
            wanted = None if version is None else str(version)
            if reference.model_id is None:
                records = registry.numbered("civitai", wanted or "")
            else:
                records = registry.versions("civitai", str(reference.model_id))
        return [record.version for record in records if wanted in (None, record.version.version_id)]

    def _choose(
        self, version: RemoteVersion, reference: Reference, use: Use, leave_out: frozenset[str]
    ) -> tuple[Wanted, ...]:
        """Which files a reference means of a version, and where they go."""
        if version.hub == "civitai":
            files = (self._civitai_file(version, reference),)
        else:
            path = reference.file if isinstance(reference, HuggingFaceReference) else None
            whole = path is None and not any(file.primary for file in version.files)
            if whole and any(file.format == "diffusers" for file in version.files):
                parts = diffusers_files(version)
                wanted = tuple(_wanted_part(version, part, use) for part in parts)
                return tuple(one for one in wanted if one.folder not in leave_out)
            files = (self.huggingface().file(version, path),)
        wanted = tuple(_wanted(version, file, use) for file in files)
        return wanted if len(wanted) == 1 else tuple(w for w in wanted if w.folder not in leave_out)

    def _civitai_file(self, version: RemoteVersion, reference: Reference) -> RemoteFile:
        if isinstance(reference, HashReference):
            for file in version.files:
                # An AutoV2 is the beginning of the SHA-256.
                whole = file.sha256 or ""
                if reference.value in file.short_hashes or whole.startswith(reference.value):
                    return file
            return self.civitai().file(version)
        assert isinstance(reference, CivitaiReference)
        return self.civitai().file(version, reference)

    def _find(self, wanted: Wanted, stop: Callable[[], None]) -> FileRef | None:
        file = wanted.file
        if wanted.pieces and joined_from(self._target(wanted)) != _marks(wanted):
            return None
        same = _MODELS if wanted.folder in _MODELS else (wanted.folder,)
        for ref in self._catalog.with_hash(file.sha256) if file.sha256 else ():
            if ref.folder in same:
                return ref
        # With a hash the size is left out: else every file of that size would be read.
        size = None if file.sha256 else file.size
        ref = FileRef(folder=wanted.folder, name=wanted.name, size=size, sha256=file.sha256)
        try:
            return self._catalog.find(ref, stop=stop)[0]
        except ModelFileError:
            return None

    def _elsewhere(self, wanted: Wanted, stop: Callable[[], None]) -> FileRef | Wanted:
        """What is not there under its own name under one that no other file has."""
        if wanted.version.hub != "civitai" or not self._target(wanted).exists():
            return wanted
        # Many authors call their files alike; the version's number makes the name its own.
        path = PurePosixPath(wanted.name)
        mark = f"{wanted.version.version_id}-{wanted.file.file_id or 0}"
        name = path.with_name(safe_name(f"{path.stem}-civitai-{mark}{path.suffix}"))
        wanted = wanted._replace(name=name.as_posix())
        return self._find(wanted, stop) or wanted

    def _target(self, wanted: Wanted) -> Path:
        return _first(self._folders(wanted.folder), wanted.folder) / wanted.name

    # ------------------------------------------------------------------ downloading

    def _download(self, wanted: Wanted, share: _Share, stop: Callable[[], None]) -> FileRef:
        target = self._target(wanted)
        if self._cache.compressed(target):
            self._cache.restore(target, stop=stop)
        else:
            log.info("Intelligent Generation: downloading %s", describe(wanted))
            if wanted.pieces:
                sha256 = self._put_together(wanted, target, share, stop)
            else:
                show = partial(share.show, wanted)
                sha256 = self._load(wanted.file, target.parent, target.name, show, stop).sha256
            if sha256:
                self._cache.add(target, wanted.folder, wanted.version, sha256)
            if wanted.folder == "loras" and wanted.file.hub == "civitai":
                self._mine(wanted.version, stop)
        share.finished(wanted)
        return self._catalog.ref(wanted.folder, wanted.name)

    def _load(
        self,
        file: RemoteFile,
        folder: Path,
        name: str,
        show: Callable[[DownloadProgress], object],
        stop: Callable[[], None],
    ) -> Downloaded:
        return download(
            DownloadRequest(
                hub=file.hub,
                url=file.url,
                folder=folder,
                name=name,
                size=file.size,
                sha256=file.sha256,
                authorization=self._credentials.authorization(file.hub),
            ),
            http=self._http,
            pace=self._paces[file.hub],
            check=read_header,
            on_progress=show,
            sha256_of=lambda path: self._catalog.sha256(path, stop=stop),
            effects=Effects(stop=stop),
        )

    def _put_together(
        self, wanted: Wanted, target: Path, share: _Share, stop: Callable[[], None]
    ) -> str:
        if target.exists():
            raise DownloadError(
                f"Another file of that name is already there: {target}. It was left as it is. "
                "Rename or move it, then download again."
            )
        paths: list[Path] = []
        done = 0
        for piece in wanted.pieces:
            name = safe_name(PurePosixPath(piece.name).name)

            def show(progress: DownloadProgress, before: int = done) -> None:
                share.show(wanted, progress._replace(done=before + progress.done, total=None))

            loaded = self._load(piece, target.parent, name, show, stop)
            paths.append(loaded.path)
            done += loaded.size

        def wait() -> None:
            stop()
            time.sleep(_TICK)

        return join(paths, target, _marks(wanted), stop=stop, wait=wait)

    def _mine(self, version: RemoteVersion, stop: Callable[[], None]) -> None:
        """Keep the strength that the version's sample images were made with."""
        try:
            mined = self.civitai(stop).settings(version)
        except HubError as error:
            # The LoRA is there; only a hint at its strength is not.
            log.warning("Intelligent Generation: %s", error)
        else:
            key = (version.hub, version.model_id, version.version_id)
            self._catalog.registry.set_mined(*key, mined)


class _Share:
    """The share of the bytes of several files that is there."""

    def __init__(
        self,
        files: Sequence[Wanted],
        tell: Callable[[float], object],
        say: Callable[[str], object],
    ) -> None:
        self._sizes = {wanted: _size(wanted.file) or 0 for wanted in files}
        self._tell = tell
        self._say = say
        self._before = 0

    def show(self, wanted: Wanted, progress: DownloadProgress) -> None:
        self._sizes[wanted] = progress.total or self._sizes[wanted]
        if total := sum(self._sizes.values()):
            self._tell(min(1.0, (self._before + progress.done) / total))
        self._say(progress_line(PurePosixPath(wanted.file.name).name, progress))

    def finished(self, wanted: Wanted) -> None:
        self._before += self._sizes[wanted]


def read_references(text: str, addresses: Sequence[str] = ()) -> tuple[Reference, ...]:
    """The references in a text, one a line; each once.

    Args:
        addresses: configured base addresses, whose pages may be pasted too.

    Raises:
        SettingError: a line names nothing, is ambiguous, or holds a token.
    """
    mirrors = tuple(host for url in addresses if (host := urlsplit(url).hostname))
    lines = (line.strip() for line in text.splitlines())
    return tuple(dict.fromkeys(parse_reference(line, mirrors=mirrors) for line in lines if line))


class LoraReference(NamedTuple):
    """One line of a list of LoRAs."""

    reference: Reference
    strength: float | None
    """What stands behind the reference; None when nothing does."""


def read_lora_references(text: str, addresses: Sequence[str] = ()) -> tuple[LoraReference, ...]:
    """The LoRAs in a text, one a line, each perhaps with a strength behind it.

    Raises:
        SettingError: as `read_references`; a strength beyond 100; one LoRA at two strengths.
    """
    found: dict[Reference, LoraReference] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        pasted, _, last = line.rpartition(" ")
        strength = float(last) if pasted and _STRENGTH.fullmatch(last) else None
        if strength is not None and abs(strength) > MAX_STRENGTH:
            raise SettingError(f"{line}: a strength is from -{MAX_STRENGTH} to {MAX_STRENGTH}.")
        (reference,) = read_references(line if strength is None else pasted, addresses)
        lora = found.setdefault(reference, LoraReference(reference, strength))
        if lora.strength != strength:
            raise SettingError(f"{reference} stands in references twice, at two strengths.")
    return tuple(found.values())


def describe(wanted: Wanted) -> str:
    """A file of a hub in words: name, size, base model, licence, page, and its place here."""
    version = wanted.version
    where = terms(
        version.hub,
        base_model=version.base_model,
        licence=version.licence,
        creator=version.creator,
        page=version.page,
    )
    return (
        f"{PurePosixPath(wanted.file.name).name} ({size_in_words(_size(wanted.file))}) of "
        f"{version.name} {where}, into {wanted.folder}/{wanted.name}"
    )


def _not_allowed(missing: Sequence[Wanted]) -> str:
    listed = "\n".join(f"- {describe(wanted)}" for wanted in missing)
    return (
        f"Not on this machine, and allow_download is off. It would download:\n{listed}\nTurn "
        "allow_download on if you accept the size and the licence, and run again."
    )


def _wanted_part(version: RemoteVersion, part: DiffusersPart, use: Use) -> Wanted:
    if len(part.files) == 1:
        return _wanted(version, part.files[0], use)
    sizes = [_size(piece) for piece in part.files]
    about = sum(size for size in sizes if size is not None)
    whole = part.files[0]._replace(name=part.name, size=None, sha256=None, size_about=about)
    return _wanted(version, whole, use)._replace(pieces=part.files)


def _marks(wanted: Wanted) -> tuple[str, ...]:
    """What tells the pieces of this content from those of another."""
    return tuple(piece.sha256 or f"{piece.size}" for piece in wanted.pieces)


def _reference(version: RemoteVersion) -> Reference:
    if version.hub == "huggingface":
        return HuggingFaceReference(version.model_id, version.version_id)
    return CivitaiReference(int(version.model_id), int(version.version_id))


def _wanted(version: RemoteVersion, file: RemoteFile, use: Use) -> Wanted:
    path = PurePosixPath(file.name)
    if path.suffix.lower() not in _LOADED:
        raise SettingError(
            f"{file.name} of {version.name} is not a safetensors file. Only safetensors files are "
            "fetched: other formats can run code, or are not loaded by ComfyUI itself. Name "
            "another file or version."
        )
    folder = _FOLDERS.get(version.kind)
    if version.hub == "huggingface":
        named = (_FOLDERS_BY_PATH.get(part.lower()) for part in reversed(path.parts[:-1]))
        # A repository's own kind is a guess from its tags; what it is used for counts more.
        guess = "loras" if use == "lora" else folder or "checkpoints"
        folder = next((folder for folder in named if folder), guess)
    if folder not in _USABLE[use]:
        what = f"{file.name} of {version.name} is "
        if folder == "loras":
            advice = "a LoRA. Name it in CivitAILoRAFetcher's references."
        elif folder is None:
            advice = "no kind of model that this pack loads. Name another."
        else:
            advice = f"for {folder}, not a LoRA. Name it in HubModelLoader's reference."
        raise SettingError(what + advice)
    # Files of repositories share a few names; each repository gets a folder of its own.
    parts = (*version.model_id.split("/"), *path.parts)
    parts = (file.name,) if version.hub == "civitai" else parts
    return Wanted(version, file, folder, "/".join(map(safe_name, parts)))


def _first(directories: Sequence[Path], key: str) -> Path:
    # ComfyUI lists models/unet before models/diffusion_models.
    named = directories[0].with_name(key)
    return named if named in directories else directories[0]


def _size(file: RemoteFile) -> int | None:
    return file.size if file.size is not None else file.size_about
