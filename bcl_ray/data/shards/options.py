"""The options of `write_shards` that say what a data set holds."""

from dataclasses import dataclass

from bcl_ray.data.shards.manifest import ProfileInfo
from bcl_ray.experiment.choices import OnBadImage
from bcl_ray.machine.errors import UserError

SHARD_BYTES = 256 << 20
MAX_PIXELS = 1 << 26


@dataclass(frozen=True)
class ShardOptions:
    """What a data set's bytes depend on, beside its source."""

    profile: ProfileInfo
    shard_bytes: int
    """Target size of a shard."""
    max_pixels: int
    """Largest allowed width x height of an image."""
    on_bad_image: OnBadImage
    """Whether bad rows stop the work, or are replaced and listed."""

    @property
    def identity(self) -> str:
        """The options as text; one that changes makes interrupted attempts begin anew."""
        return f"{self.profile} {self.shard_bytes} {self.max_pixels} {self.on_bad_image}"

    def check(self) -> None:
        """Check the options.

        Raises:
            ValueError: One is out of range, or does nothing.
        """
        if self.profile.name == "natural" and self.profile.imbalance_factor is not None:
            raise UserError("imbalance_factor does nothing for profile 'natural': leave it out")
        for option, value, least in (
            ("shard_bytes", self.shard_bytes, 1),
            ("max_pixels", self.max_pixels, 1),
            ("seed", self.profile.seed, 0),
        ):
            if value < least:
                raise UserError(f"{option} ({value}) must be at least {least}")
        if self.on_bad_image not in ("stop", "skip"):
            raise UserError(f"on_bad_image '{self.on_bad_image}' must be stop or skip")
