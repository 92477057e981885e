"""What a hub's refusal means: one error and one text for each, that says what to do."""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from typing import Any

from ..errors import HubAccessError, HubBusyError, HubError, HubNotFoundError
from .entries import Hub
from .http import Answer, Failure

HUB_NAMES: dict[Hub, str] = {"huggingface": "Hugging Face", "civitai": "CivitAI"}
TOKEN_VARIABLES: dict[Hub, tuple[str, ...]] = {
    "civitai": ("CIVITAI_API_TOKEN", "CIVITAI_API_KEY"),
    "huggingface": ("HF_TOKEN",),
}
"""Environment variables that hold a hub's token, the first that is set counts."""
TOKEN_PAGES: dict[Hub, str] = {
    "civitai": "https://civitai.com/user/account",
    "huggingface": "https://huggingface.co/settings/tokens",
}

_SAID = 300  # characters of a hub's own words in an error
_WINDOW = re.compile(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)")


def failure(hub: Hub, answer: Answer, *, what: str, has_token: bool) -> Failure:
    """What a status of 400 or above means.

    Args:
        what: what was asked for, in the middle of a sentence: "version 12", "file a/b".
        has_token: whether a token went along.
    """
    read = _civitai if hub == "civitai" else _huggingface
    return read(answer, what, has_token) or _any(HUB_NAMES[hub], answer, what)


def said(answer: Answer) -> str:
    """The hub's own words in an error, one line; empty when it sent a web page or nothing."""
    try:
        body = json.loads(answer.body)
    except ValueError:
        return ""
    words: list[str] = []
    if isinstance(body, dict):
        for value in (body.get("error"), body.get("message")):
            text = value.get("message") if isinstance(value, dict) else value
            words += [text] if isinstance(text, str) else []
    return " ".join(" ".join(dict.fromkeys(words)).split())[:_SAID]


def data(hub: Hub, answer: Answer, *, what: str) -> Any:
    """The answer's JSON.

    Raises:
        HubError: it is none, such as a web page.
    """
    try:
        return json.loads(answer.body)
    except ValueError:
        raise unreadable(hub, what) from None


def unreadable(hub: Hub, what: str) -> HubError:
    """An answer that does not hold what it should."""
    return HubError(
        f"{HUB_NAMES[hub]} answered the request for {what} with something unreadable, perhaps a "
        "web page of a proxy or login in between. Open the site in a browser on this machine, "
        "and try again later."
    )


def _civitai(answer: Answer, what: str, has_token: bool) -> Failure | None:
    words = said(answer)
    match answer.status:
        case 401 if "disabled downloads" in words:
            return Failure(
                HubAccessError(
                    f"The creator of {what} on CivitAI has disabled its download. No token "
                    "changes that; choose another file or model."
                )
            )
        case 401:
            return Failure(HubAccessError(f"CivitAI wants a login for {what}. {_token(has_token)}"))
        case 403 if "Early Access" in words:
            until = _field(answer, "deadline")
            return Failure(
                HubAccessError(
                    f"On CivitAI {what} is in early access"
                    f"{f' until {until}' if until else ''}: wait for its end, or buy access on "
                    "the site and use your account's token."
                )
            )
        case 403 if words:
            return Failure(
                HubAccessError(
                    f"Your CivitAI account may not have {what}. Look at its page on the site for "
                    f"what is asked for. {'' if has_token else _token(False)}".rstrip()
                )
            )
        case 403:
            return Failure(
                HubAccessError(
                    f"Something in front of CivitAI refused the request for {what}: its "
                    "protection against robots, or a filter of your network. Open the site in a "
                    "browser on this machine, and try again later."
                )
            )
        case 404:
            return Failure(
                HubNotFoundError(
                    f"CivitAI has no {what}. Check the number or hash. What is for adults only "
                    "may be on civitai.red alone: set the environment variable "
                    "CIVITAI_ENDPOINT=https://civitai.red to look there."
                )
            )
        case 410:
            return Failure(
                HubNotFoundError(
                    f"On CivitAI {what} is archived and cannot be downloaded any more. "
                    "Choose another version or model."
                )
            )
        case 429 if "unusual amount" in words:
            return Failure(
                HubBusyError(
                    "CivitAI has paused downloads for your account: too many in a short time. "
                    "Wait some hours, then start again; finished parts are kept."
                ),
                throttled=True,
            )
        case 429 if "cursors" in words:
            return Failure(HubError("CivitAI gives no further pages of this search."))
        case _:
            return None


def _huggingface(answer: Answer, what: str, has_token: bool) -> Failure | None:
    code = answer.headers.get("x-error-code", "")
    words = answer.headers.get("x-error-message", "") or said(answer)
    if answer.status == 401 and "invalid credentials" in words.lower():
        return Failure(
            HubAccessError(
                "Hugging Face does not accept the token. Make a new one at "
                f"{TOKEN_PAGES['huggingface']} and set it as HF_TOKEN or in the pack's settings."
            )
        )
    if code == "GatedRepo":
        return Failure(
            HubAccessError(
                f"On Hugging Face {what} is only for people who accepted its terms. Accept them "
                "on its page while logged in"
                + (
                    " with the account of the token."
                    if has_token
                    else f", then set a token of that account ({TOKEN_PAGES['huggingface']}) as "
                    "HF_TOKEN or in the pack's settings."
                )
            )
        )
    if "disabled" in words.lower() and answer.status in (403, 404):
        return Failure(HubNotFoundError(f"Hugging Face has disabled access to {what}."))
    if code == "RevisionNotFound":
        return Failure(HubNotFoundError(f"Hugging Face has no such revision: {what}."))
    if code == "EntryNotFound":
        return Failure(
            HubNotFoundError(f"Hugging Face has no such file: {what}. Look at the repository.")
        )
    if code == "RepoNotFound" or answer.status in (401, 404):
        return Failure(
            HubNotFoundError(
                f"Hugging Face has no {what}, or it is private. Check owner and name; for a "
                "private one "
                + (
                    "use a token that may read it."
                    if has_token
                    else "set a token as HF_TOKEN or in the pack's settings."
                )
            )
        )
    if answer.status == 403:
        return Failure(
            HubAccessError(
                f"Hugging Face refuses {what}. "
                + (
                    "The token lacks the permission to read it."
                    if has_token
                    else "Set a token as HF_TOKEN or in the pack's settings."
                )
            )
        )
    return None


def _any(hub: str, answer: Answer, what: str) -> Failure:
    status = answer.status
    if status == 429:
        return Failure(
            HubBusyError(f"{hub} asks for fewer requests (HTTP 429)."),
            again=True,
            throttled=True,
            wait=retry_after(answer),
        )
    if status >= 500 or status == 408:
        return Failure(
            HubBusyError(f"{hub} has trouble of its own (HTTP {status})."),
            again=True,
            wait=retry_after(answer),
        )
    words = said(answer)
    return Failure(
        HubError(
            f"{hub} did not accept the request for {what} (HTTP {status})"
            f"{f': {words}' if words else '.'}"
        )
    )


def retry_after(answer: Answer) -> float | None:
    """Seconds the hub asks to wait: `Retry-After` in both forms, or an exhausted `RateLimit`."""
    value = answer.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    if value:
        try:
            then = parsedate_to_datetime(value)
            now = parsedate_to_datetime(answer.headers.get("date", ""))
            return max(0.0, (then - now).total_seconds())
        except (TypeError, ValueError):
            pass
    window = _WINDOW.search(answer.headers.get("ratelimit", ""))
    return float(window[1]) if window else None


def _token(has_token: bool) -> str:
    if has_token:
        return (
            "It does not accept the token, which may have ended or belong to another of its "
            f"sites. Make a new one at {TOKEN_PAGES['civitai']} and set it again."
        )
    return (
        f"Make a token at {TOKEN_PAGES['civitai']} and set it as CIVITAI_API_TOKEN or in the "
        "pack's settings."
    )


def _field(answer: Answer, name: str) -> str:
    try:
        value = json.loads(answer.body)[name]
    except (ValueError, KeyError, TypeError):
        return ""
    return value[:40] if isinstance(value, str) else ""
