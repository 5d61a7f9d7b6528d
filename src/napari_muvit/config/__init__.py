"""Every option, once: type, default, bound, title, description and unit.

Forms, ``--help`` and the reference page derive from these classes, so the three cannot
disagree. A config is frozen and refuses unknown keys.
"""

from napari_muvit.config.files import (
    SCHEMA_VERSION,
    config_error,
    parse_config,
    read_options,
    write_config,
)
from napari_muvit.config.options import PRESETS, CropOptions, Options, RunConfig, SourceOptions
from napari_muvit.config.verbs import FinetuneConfig, PredictConfig, PretrainConfig

__all__ = [
    "PRESETS", "SCHEMA_VERSION", "CropOptions", "FinetuneConfig", "Options", "PredictConfig",
    "PretrainConfig", "RunConfig", "SourceOptions", "config_error", "parse_config",
    "read_options", "write_config",
]
