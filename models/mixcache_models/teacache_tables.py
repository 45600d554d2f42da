"""The polynomials that TeaCache's authors published (arXiv 2411.19108), for the checkpoints whose probe is ours too.

Highest power first. Rows fitted to another signal (Wan's plain time embedding) are left out: they would mean something
else. A checkpoint is told by its configuration, so that of Wan 2.2 A14B text to video, which is that of Wan 2.1 14B,
gets the coefficients of the latter. Wan 2.1 image to video has one configuration for 480P and 720P: 480P is taken.
"""

from typing import Any

from mixcache import Calibration


def _row(coefficients: tuple[float, ...], what: str, **match: Any) -> Calibration:
    source = f"ali-vilab/TeaCache 7c10efc (Apache-2.0): {what}"
    return Calibration(policy="teacache", values={"coefficients": coefficients}, source=source, match=match)


_COGVIDEOX_5B = (-1.53880483e03, 8.43202495e02, -1.34363087e02, 7.97131516e00, -5.23162339e-02)

TEACACHE: dict[str, tuple[Calibration, ...]] = {
    "WanTransformer3DModel": (
        _row(
            (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02),
            "Wan 2.1 text to video 1.3B, use_ret_steps",
            num_layers=30,
            num_attention_heads=12,
            in_channels=16,
        ),
        _row(
            (-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01),
            "Wan 2.1 text to video 14B, use_ret_steps",
            num_layers=40,
            num_attention_heads=40,
            in_channels=16,
        ),
        _row(
            (2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
            "Wan 2.1 image to video 14B 480P, use_ret_steps",
            num_layers=40,
            num_attention_heads=40,
            in_channels=36,
            image_dim=1280,
            pos_embed_seq_len=None,
        ),
    ),
    "FluxTransformer2DModel": (
        _row(
            (4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01),
            "FLUX.1-dev",
            num_layers=19,
            num_single_layers=38,
            in_channels=64,
            guidance_embeds=True,
        ),
    ),
    "HunyuanVideoTransformer3DModel": (
        _row(
            (7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02),
            "HunyuanVideo",
            num_layers=20,
            num_single_layers=40,
            in_channels=16,
            guidance_embeds=True,
            image_condition_type=None,
        ),
    ),
    "CogVideoXTransformer3DModel": (
        _row(
            (-3.10658903e01, 2.54732368e01, -5.92380459e00, 1.75769064e00, -3.61568434e-03),
            "CogVideoX-2B",
            num_layers=30,
            in_channels=16,
            patch_size_t=None,
        ),
        _row(_COGVIDEOX_5B, "CogVideoX-5B", num_layers=42, in_channels=16, patch_size_t=None),
        _row(_COGVIDEOX_5B, "CogVideoX-5B image to video", num_layers=42, in_channels=32, patch_size_t=None),
        _row(
            (2.50210439e02, -1.65061612e02, 3.57804877e01, -7.81551492e-01, 3.58559703e-02),
            "CogVideoX1.5-5B",
            num_layers=42,
            in_channels=16,
            patch_size_t=2,
        ),
        _row(
            (1.22842302e02, -1.04088754e02, 2.62981677e01, -3.06009921e-01, 3.71213220e-02),
            "CogVideoX1.5-5B image to video",
            num_layers=42,
            in_channels=32,
            patch_size_t=2,
        ),
    ),
    "LTXVideoTransformer3DModel": (
        _row(
            (2.14700694e01, -1.28016453e01, 2.31279151e00, 7.92487521e-01, 9.69274326e-03),
            "LTX-Video",
            num_layers=28,
            num_attention_heads=32,
            in_channels=128,
        ),
    ),
    "MochiTransformer3DModel": (
        _row(
            (-3.51241319e03, 8.11675948e02, -6.09400215e01, 2.42429681e00, 3.05291719e-03),
            "Mochi 1",
            num_layers=48,
            num_attention_heads=24,
            in_channels=12,
        ),
    ),
}
"""Calibrations by the class name of the transformer."""
