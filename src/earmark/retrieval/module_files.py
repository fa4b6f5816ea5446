"""Saving and loading, the same for all of Earmark's modules: config.json and model.safetensors."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, Self

from sentence_transformers.base.modules import Module


def open_weights(folder: Path, config: str = "config.json") -> None:
    """Make `folder`'s model.safetensors as readable as its `config`: safetensors makes the file private."""
    (folder / "model.safetensors").chmod(stat.S_IMODE((folder / config).stat().st_mode))


class SavedModule(Module):
    """A module that is rebuilt from its `config_keys` and its weights. Mix in before `InputModule`, where needed."""

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write config.json and model.safetensors into `output_path` (never pickled weights)."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=True)
        open_weights(Path(output_path), self.config_file_name)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Read what `save` wrote; missing and unexpected weights are errors."""
        module = super().load(
            model_name_or_path, subfolder, token, cache_folder, revision, local_files_only, init_defaults, **kwargs
        )
        cls.load_torch_weights(
            model_name_or_path, subfolder, token, cache_folder, revision, local_files_only, model=module
        )
        return module
