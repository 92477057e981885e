"""What the hubs say about models, in one form for both."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Hub = Literal["huggingface", "civitai"]
ModelKind = Literal["checkpoint", "lora", "vae", "text_encoder", "diffusion_model", "other"]
Sort = Literal["downloads", "likes", "newest"]

MAX_ASKS = 5
"""Requests for one page of results, at most, when most of what the hub sends is sorted out."""


class RemoteFile(NamedTuple):
    """One file that a hub offers."""

    hub: Hub
    url: str
    """Where a download starts; never carries a token."""
    name: str
    """As the hub names it, untrusted: may hold path parts. `download.safe_name` cleans it."""
    size: int | None
    """Bytes; None when the hub rounds or hides it."""
    sha256: str | None
    """Lower-case hex of the whole file; None when the hub does not say."""
    precision: str | None = None
    """fp16, bf16, fp8, nf4 ...; None when not said."""
    format: str = "safetensors"
    """safetensors, ckpt, gguf, diffusers, other."""
    primary: bool = True
    """Whether it is the version's main file."""
    size_about: int | None = None
    """Bytes, perhaps rounded by the hub: to show and to check free space, not to verify."""
    file_id: int | None = None
    """CivitAI's number of the file; None when it does not say, and on Hugging Face."""
    short_hashes: tuple[str, ...] = ()
    """AutoV1, AutoV2 and AutoV3 in lower-case hex, as far as CivitAI says them."""


class RemoteVersion(NamedTuple):
    """One version of a model: a CivitAI model version, or a Hugging Face repository's commit."""

    hub: Hub
    model_id: str
    """CivitAI's model number, or `owner/name`."""
    version_id: str
    """CivitAI's version number, or a commit or branch."""
    name: str
    kind: ModelKind
    base_model: str
    """As the hub writes it, e.g. `SDXL 1.0` or `stabilityai/stable-diffusion-xl-base-1.0`."""
    family: str
    """Id in the catalog's families.json, `unknown` when the base model is not in it."""
    files: tuple[RemoteFile, ...]
    trigger_words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    description: str = ""
    """Plain text, at most 1,000 characters."""
    creator: str = ""
    licence: str = ""
    """In words for a person: the licence's name, or what CivitAI's permission fields allow."""
    downloads: int | None = None
    likes: int | None = None
    """Thumbs up on CivitAI, likes on Hugging Face."""
    nsfw: bool = False
    minor_unsafe: bool = False
    """The hub marks it as showing minors in content that is not safe for work, or as minors."""
    gated: bool = False
    """Needs a login, an accepted licence, or is in early access."""
    page: str = ""
    """Web page for a person."""
    image: str | None = None
    """URL of a preview image that is safe for work; None when there is none."""


def readable(version: RemoteVersion) -> RemoteVersion:
    """The same without characters that are no text: halves of pairs, and zero bytes. JSON can
    carry them, databases and plans cannot."""
    return _readable(version)


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        if value.isprintable():
            return value
        return value.encode("utf-8", "replace").decode().replace("\0", "")
    if not isinstance(value, tuple):
        return value
    parts = map(_readable, value)
    return value._make(parts) if isinstance(value, (RemoteVersion, RemoteFile)) else tuple(parts)


class MinedSettings(NamedTuple):
    """What the sample images of a version were made with. Medians over images that say it."""

    images: int
    """How many images said anything."""
    weight: float | None = None
    """LoRA strength."""
    cfg: float | None = None
    steps: int | None = None
    sampler: str | None = None
    """In ComfyUI's name, e.g. `dpmpp_2m`."""
    scheduler: str | None = None
    clip_skip: int | None = None


class SearchQuery(NamedTuple):
    """What to search for. Everything that is given must hold for every result."""

    text: str = ""
    kind: ModelKind | None = None
    base_models: tuple[str, ...] = ()
    """The hub's own names, any of them: `SDXL 1.0`, or `owner/name` on Hugging Face."""
    families: tuple[str, ...] = ()
    """Ids of families.json, any of them. Sort out what the hub finds: give `base_models` too
    where they are known, for the hub to search by."""
    tags: tuple[str, ...] = ()
    """All of them; on CivitAI only the first narrows the hub's own search."""
    task: str | None = None
    """Hugging Face's pipeline tag, e.g. `text-to-image`; CivitAI has no such thing."""
    library: str | None = None
    """Hugging Face's library, e.g. `diffusers`; CivitAI has no such thing."""
    sort: Sort = "downloads"
    limit: int = 20
    """1 to 100."""
    cursor: str | None = None
    """`SearchPage.cursor` of the page before, with an otherwise equal query."""


class SearchPage(NamedTuple):
    """One page of search results."""

    versions: tuple[RemoteVersion, ...]
    cursor: str | None
    """Gives the next page; None at the end. A page may be short, or empty, before the end."""
