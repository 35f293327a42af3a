"""The form of POST /v1/mix: a clip, a sound that was made before, and the options of the mix."""

from foley.errors import ParameterError
from foley.mix import MixOptions
from runners.jobs.job import GenerationOptions

MIX_PATH = "/v1/mix"
SOUND_FIELD = "sound"
# Options of the files, and those that marks hold, which say how the sound was made.
FILE_OPTIONS = ("clip_url", "format", "also")
MARKED_OPTIONS = ("prompt", "seed")
ACCEPTED = (*MixOptions.model_fields, *FILE_OPTIONS, *MARKED_OPTIONS)


def check_mix_options(options: GenerationOptions) -> None:
    """Refuse options that are about making a sound.

    Args:
        options: of the form.

    Raises:
        ParameterError: one of them was given; the message names it.
    """
    for name in sorted(options.model_fields_set.difference(ACCEPTED)):
        raise ParameterError(
            f"{name}: is about making a sound, and {MIX_PATH} finishes one that exists; leave it "
            "out, or send the request to /v1/generate"
        )
