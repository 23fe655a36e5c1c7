"""Where packs contradict each other, or stand in each other's way."""

from hf_edit.compose.conflicts.report import ConflictReport, Finding
from hf_edit.compose.conflicts.textual import resolve, textual_conflicts


__all__ = ["ConflictReport", "Finding", "resolve", "textual_conflicts"]
