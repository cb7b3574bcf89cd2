"""What is finished of a job, as a file that plays, while somebody works on the job."""

from contextlib import closing
from pathlib import Path

from ..errors import InputError
from ..files import writing
from ..media.mp4 import write_mp4
from ..media.segments import SegmentSpool, longest_run
from .folder import JobFolder
from .paths import SPOOL


def write_playable(folder: JobFolder, path: Path) -> int:
    """Join the finished frames of a job into the MP4 ``path``: the longest run without a gap, packets copied.

    The job is neither changed nor kept waiting; only whole sections count.

    Returns:
        Frames in the file; 0 if none is finished, and there is no file.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        spool = SegmentSpool.reading(folder.path / SPOOL)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise InputError(f"{folder.path / SPOOL} cannot be read: {error.strerror}") from error
    with writing(path), closing(spool):
        video = folder.record.video_format
        spool.extradata = video.parameter_sets()
        # A run at work may have cut the spool just now: nothing is lost, and nothing made again for this file.
        kept = folder.sections.kept_segments(
            spool, folder.num_sections, spool.extradata, outcome="the file ends before the section"
        )
        segments = [segment for segment in kept if segment is not None]
        if not segments:
            return 0
        run = longest_run(segments)
        num_frames = sum(segment.num_frames for segment in run)
        part = {"first_frame": run[0].first_frame, "num_frames": num_frames}
        write_mp4(path, video, run, {**folder.record.metadata, "partial": part})
        return num_frames
