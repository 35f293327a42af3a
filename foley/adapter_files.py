"""Where the files of adapters are. Without PyTorch, since processes without the model ask too."""

from pathlib import Path

from foley.errors import ConfigError


def find_files(places: str) -> list[Path]:
    """Return the files of adapters in a folder, or of a list; sorted by name in a folder.

    Args:
        places: a folder, or files and folders separated by commas.

    Raises:
        ConfigError: there is nothing at one of the places, or two files have one name.
    """
    files: list[Path] = []
    for text in filter(None, (part.strip() for part in places.split(","))):
        place = Path(text).expanduser()
        if place.is_dir():
            files += sorted(place.glob("*.safetensors"))
        elif place.is_file():
            files.append(place)
        else:
            raise ConfigError(f"{place} is neither a file nor a folder of adapters; mend the path")
    stems = [file.stem for file in files]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ConfigError(f"two files of adapters are called {stem}; rename one of them")
    return files
