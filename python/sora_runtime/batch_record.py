"""What a receipt says of a clip that was made together with others."""

from pydantic import BaseModel, ConfigDict


class BatchRecord(BaseModel):
    """One of several clips of one call.

    The seconds of what they share, and so the dollars, are billed to them in equal parts. What is counted (cache,
    engine-seconds, graphs that ran) stays with the clip in which the encoders ran.
    """

    model_config = ConfigDict(extra="forbid")

    clips: int
    index: int  # of this one, from 0
    shared_seconds: float  # of texts and picture, for all clips together; the total of each holds its part

    def __str__(self) -> str:
        return f"1/{self.clips} of {self.shared_seconds * 1e3:.1f} ms (clip {self.index + 1} of {self.clips})"
