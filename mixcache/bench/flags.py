"""What the command line and the measuring share. Nothing heavy is imported here, so that help is fast."""

from __future__ import annotations

from mixcache.errors import ConfigurationError

FLAGS = {
    "negative_prompt": "--negative-prompt",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "num_frames": "--frames",
    "height": "--height",
    "width": "--width",
}
"""Arguments of a pipeline's call that the command line offers, and its options for them."""

UNCACHED = "none"
"""How the absence of a recipe is written: `mixcache generate --policy none`, and the label of uncached clips."""

LARGEST_SEED = 2**64 - 1
"""What `torch.Generator.manual_seed` takes at most."""


def check_seed(seed: int) -> None:
    """Raises `ConfigurationError` for a seed that no noise can be drawn from."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ConfigurationError(f"--seed must be a whole number from 0 to 2**64 - 1, got {seed}.")
