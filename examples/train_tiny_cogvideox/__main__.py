"""Make the tiny pipeline from nothing: ``python -m examples.train_tiny_cogvideox --out FOLDER``.

Four stages: ``vae`` (the autoencoder), ``transformer`` (with the text encoder), ``decoder`` (the autoencoder's, which
goes on alone) and ``export`` (the folder ``FOLDER/pipeline`` that ``CogVideoXPipeline.from_pretrained`` loads).
Checkpoints are kept in FOLDER; the same command after an interruption goes on from the last one. The digits come with
scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import torch

from examples.train_shared import loop
from examples.train_tiny_cogvideox.export import export_pipeline
from examples.train_tiny_cogvideox.networks import build_vae
from examples.train_tiny_cogvideox.train_decoder import train_decoder
from examples.train_tiny_cogvideox.train_transformer import encode_clips, scaling_factor, train_transformer
from examples.train_tiny_cogvideox.train_vae import reconstruction_psnr, train_vae

STAGES: Final = ("vae", "transformer", "decoder", "export")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the tiny CogVideoX pipeline on moving digits.")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished pipeline")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="run one stage only")
    parser.add_argument("--start-from", type=Path, help="a finished pipeline whose weights to go on from")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, clips and noise")
    parser.add_argument("--vae-iterations", type=int, default=1400, help="length of the autoencoder's training")
    parser.add_argument("--iterations", type=int, default=4000, help="length of the transformer's training")
    parser.add_argument("--decoder-iterations", type=int, default=800, help="length of the decoder's own training")
    parser.add_argument("--clips", type=int, default=6144, help="clips that the transformer learns from")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's training step")
    parser.add_argument("--bfloat16", action="store_true", help="faster where the processor multiplies bfloat16")
    return parser.parse_args()


def main() -> None:
    """Run the stages that the command line asks for."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    loop.use_bfloat16(options.bfloat16)
    stages = STAGES if options.stage == "all" else (options.stage,)
    if "vae" in stages:
        vae = train_vae(options.out, options.seed, options.vae_iterations, options.start_from)
        print(f"autoencoder: {reconstruction_psnr(vae, options.seed):.2f} dB on held-out clips", flush=True)
    if "transformer" in stages:
        vae = build_vae()
        vae.load_state_dict(loop.need_checkpoint(options.out / "vae.pt", "--stage vae")["vae"])
        data = encode_clips(vae.eval(), options.out, options.seed, options.clips)
        print(f"latents: scaled by {scaling_factor(data['latents']):.4f}", flush=True)
        train_transformer(
            options.out, data, options.seed, options.iterations, options.start_from, compiled=options.compile
        )
    if "decoder" in stages:
        vae = train_decoder(options.out, options.seed, options.decoder_iterations)
        print(f"autoencoder: {reconstruction_psnr(vae, options.seed):.2f} dB on held-out clips", flush=True)
    if "export" in stages:
        folder = export_pipeline(options.out)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"pipeline: {folder}, {size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
