import subprocess
import sys

import foley


def test_the_public_names_are_these_and_all_can_be_imported() -> None:
    assert foley.__all__ == [
        "Conditions",
        "FoleyError",
        "FoleyPipeline",
        "Generation",
        "GenerationRequest",
        "Progress",
        "RequestError",
        "ServerError",
        "SoundPiece",
        "VideoFrames",
        "__version__",
    ]
    for name in foley.__all__:
        assert getattr(foley, name) is not None


def test_importing_foley_does_not_import_torch() -> None:
    code = "import sys, foley, foley.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
