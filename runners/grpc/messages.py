"""Parts of messages that several methods send."""

from foley.mix import LoudnessReport
from foley.v1 import foley_pb2 as proto


def describe_loudness(report: LoudnessReport | None) -> proto.LoudnessReport | None:
    """Return a report of the mix as a message; None without one.

    Args:
        report: of a file.
    """
    if report is None:
        return None
    return proto.LoudnessReport(
        before=proto.Loudness(**report.before.model_dump()),
        after=proto.Loudness(**report.after.model_dump()),
        gain_db=report.gain_db,
    )
