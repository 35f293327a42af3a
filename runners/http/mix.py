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


class MixFormOptions(GenerationOptions):
    """The options of the form: as those of a generation, without what makes a sound."""

    def check_clip(self, *, is_sent: bool) -> None:
        """Check that there is a clip, and nothing that is about making a sound.

        Args:
            is_sent: whether the caller sent the clip itself.

        Raises:
            ParameterError: there is no clip, there are two, or such an option was given.
        """
        for name in sorted(self.model_fields_set.difference(ACCEPTED)):
            raise ParameterError(
                f"{name}: is about making a sound, and {MIX_PATH} finishes one that exists; leave "
                "it out, or send the request to /v1/generate"
            )
        if not is_sent and self.clip_url is None:
            raise ParameterError(
                "clip: missing; send the video that gets the sound, or its clip_url"
            )
        super().check_clip(is_sent=is_sent)
