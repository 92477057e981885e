"""Reads prompts: text in, PromptAnalysis out."""

from .analyzer import analyze
from .language_model import OllamaSettings, installed_models
from .summary import summarize
from .syntax import read_emphasis

__all__ = [
    "OllamaSettings",
    "analyze",
    "installed_models",
    "read_emphasis",
    "summarize",
]
