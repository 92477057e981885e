"""The pack's one error hierarchy.

Every message says what happened, to which file or setting, and what to do. ComfyUI shows
the message on the node that raised it, so it is written for the person at the screen.
"""

from __future__ import annotations


class IntelligentGenerationError(Exception):
    """Base of every error this pack raises on purpose."""


class PromptError(IntelligentGenerationError):
    """A prompt that cannot be used: empty, too long, or with a LoRA tag that is malformed."""


class LanguageModelError(IntelligentGenerationError):
    """A language model that gave no usable answer; `code` is that of the notice about it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SettingError(IntelligentGenerationError):
    """A setting or node input whose value is not usable."""


class PlanError(IntelligentGenerationError):
    """Plan JSON that is malformed, of an unknown version, or incomplete."""


class ModelFileError(IntelligentGenerationError):
    """A model file that is missing, truncated, corrupt, or of a kind that is not loaded."""


class LoraError(ModelFileError):
    """A LoRA the user named that is missing, ambiguous, unreadable, or does not fit the model."""


class ShortOfMemoryError(IntelligentGenerationError):
    """A run or a load that is out of memory with everything given up that can be."""


class UnknownGenerationError(IntelligentGenerationError):
    """A generation id that the database does not have."""


class StorageError(IntelligentGenerationError):
    """The database cannot be opened, upgraded, or written."""


class SaveError(IntelligentGenerationError):
    """An image cannot be written: disk full, folder not writable, name not allowed."""


class HostError(IntelligentGenerationError):
    """ComfyUI lacks something that the pack needs."""


class HubError(IntelligentGenerationError):
    """Hugging Face or CivitAI cannot be reached, or answered with something unusable."""


class HubAccessError(HubError):
    """A hub refuses: a login, a valid token, an accepted licence or early access is needed."""


class HubNotFoundError(HubError):
    """A model, version or file that a hub does not have, or no longer has."""


class HubBusyError(HubError):
    """A hub that still asked to wait, or failed, after every try."""


class DownloadError(HubError):
    """A download that could not be finished or does not hold what was promised."""


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type's name, with no full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
