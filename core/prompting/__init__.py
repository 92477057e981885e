"""Reads prompts: text in, PromptAnalysis out."""

from .analyzer import analyze
from .summary import summarize
from .syntax import read_emphasis

__all__ = ["analyze", "read_emphasis", "summarize"]
