"""Measurements on runs. They need the extra "analysis"."""

from ..checks import require

require("scipy", "analysis")
