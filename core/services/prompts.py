"""What prompts say, and the models that read them."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Any

from .. import host
from ..embedding import Encoder, Opened, model_folder, open_encoder
from ..errors import SettingError
from ..plan import PromptAnalysis
from ..prompting import OllamaSettings, analyze
from ..prompting.answers import StoredAnswers
from .data import Data

log = logging.getLogger(__name__)


class Prompts:
    """Reads prompts. Safe to use from several threads."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._lock = threading.Lock()
        self._encoder: Opened | None = None
        self._encoder_lock = threading.Lock()
        self._model_failures: Counter[str] = Counter()

    @property
    def encoder(self) -> Encoder | None:
        """Turns texts into vectors of their meaning; None where its model is not on this machine.
        Loaded at first use, which takes seconds."""
        return self.opened_encoder().encoder

    def opened_encoder(self) -> Opened:
        """The same, with why there is none."""
        with self._encoder_lock:  # a lock of its own, as it is held for seconds
            if self._encoder is None:
                self._encoder = open_encoder(model_folder())
                if self._encoder.problem:
                    log.info(
                        "Prompts and LoRAs are compared by words alone. %s", self._encoder.problem
                    )
            return self._encoder

    def analyze(
        self,
        prompt: str,
        negative_prompt: str,
        syntax: Any,
        ollama: OllamaSettings | None = None,
    ) -> PromptAnalysis:
        """What a prompt says, by a language model in Ollama where one is named, else by the
        built-in analyzer.

        Raises:
            PromptError: see `prompting.analyze`.
            SettingError: no model is named.
        """
        if ollama is None:
            return analyze(prompt, negative_prompt, syntax=syntax, encoder=self.encoder)
        if not ollama.model:
            raise SettingError(
                "analyzer is Ollama, but ollama_model is empty. Write the name of an installed "
                "model there."
            )
        analysis = analyze(
            prompt,
            negative_prompt,
            syntax=syntax,
            ollama=ollama,
            cache=StoredAnswers(self._data.database),
            check=host.check_interrupt,
            encoder=self.encoder,
        )
        if analysis.analyzer != "ollama":
            with self._lock:
                self._model_failures[ollama.model] += 1
        return analysis

    def language_model_failures(self, model: str | None) -> str:
        """Changes when a language model gave no usable answer; None: any of them."""
        with self._lock:
            failures = self._model_failures
            return str(sum(failures.values()) if model is None else failures[model.strip()])
