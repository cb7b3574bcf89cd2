"""Frames of sections that come in any order."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .vae import DecodedFrames, SectionDecoder, VideoVAE, to_uint8


class OrderedDecoder:
    """Decodes from the start of the video on, as far as its sections are there without a gap.

    Sections that were made ahead wait as latents, which are smaller than frames; how many that are depends on the order:
    one with "endpoints", every fourth one with "planned".

    Args:
        vae: decodes.
        places: of the sections in the video, in generation order.
        window: latent frames per section.
        start_latent: [1, 16, 1, h, w], scaled; None where the video has no start image.
        num_leading: as for :class:`SectionDecoder`.
    """

    def __init__(
        self,
        vae: VideoVAE,
        *,
        places: Sequence[int],
        window: int,
        start_latent: Tensor | None,
        num_leading: int = 1,
    ) -> None:
        self._inner = SectionDecoder(
            vae, order="forward", window=window, num_sections=len(places), start_latent=start_latent,
            num_leading=num_leading,
        )  # fmt: skip
        self.num_frames = self._inner.num_frames
        self._vae = vae
        self._places = places
        self._window = window
        self._num_pushed = self._next_place = 0
        self._waiting: dict[int, Tensor] = {}
        # Decoded, but not returned yet: a section after them failed.
        self._decoded: list[DecodedFrames] = []
        self._ahead: DecodedFrames | None = None

    def push(self, latents: Tensor) -> DecodedFrames:
        """Take the next section in generation order; the frames that became final with it, often none.

        Where decoding fails, the same push may be made again: no section counts twice, no frame is lost.
        """
        place = self._places[self._num_pushed]
        if place >= self._next_place:
            self._waiting[place] = latents
        frames = self._decode_ready()
        self._num_pushed += 1
        return frames

    def restart(self, num_pushed: int, read: Callable[[int], Tensor]) -> None:
        """Stand where ``num_pushed`` sections leave a decoder; ``read`` gives latents by index in generation order."""
        self._num_pushed = num_pushed
        index_of = {place: index for index, place in enumerate(self._places[:num_pushed])}
        while self._next_place in index_of:
            self._next_place += 1
        if self._next_place:
            self._inner.restart(self._next_place, lambda place: read(index_of[place]))
        self._waiting = {place: read(index) for place, index in index_of.items() if place >= self._next_place}

    def provisional(self) -> DecodedFrames | None:
        """The frames at the open edge; before there are any, those of the section that was made ahead."""
        found = self._inner.provisional()
        if found is not None or not self._waiting:
            return found
        if self._ahead is None:
            place = min(self._waiting)
            frames = to_uint8(self._vae.decode(self._waiting[place].float())[0].cpu())
            last_frame = self.num_frames - 4 * self._window * (len(self._places) - 1 - place)
            self._ahead = DecodedFrames(frames=frames, first_frame=last_frame - len(frames))
        return self._ahead

    def _decode_ready(self) -> DecodedFrames:
        while self._next_place in self._waiting:
            self._decoded.append(self._inner.push(self._waiting[self._next_place]))
            del self._waiting[self._next_place]
            self._next_place += 1
        if not self._decoded:
            return DecodedFrames(frames=self._no_frames(), first_frame=0)
        frames = torch.cat([part.frames for part in self._decoded])
        # The first of them may have released no frame, and its place is that of the next one.
        first_frame = self._decoded[0].first_frame
        self._decoded = []
        return DecodedFrames(frames=frames, first_frame=first_frame)

    def _no_frames(self) -> Tensor:
        height, width = (8 * edge for edge in next(iter(self._waiting.values())).shape[3:])
        return torch.empty(0, height, width, 3, dtype=torch.uint8)
