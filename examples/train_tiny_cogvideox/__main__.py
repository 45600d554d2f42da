"""Make the tiny pipeline from nothing: ``python -m examples.train_tiny_cogvideox --out FOLDER``.

Four stages: ``vae`` (the autoencoder), ``transformer`` (with the text encoder), ``decoder`` (the autoencoder's, which
goes on alone) and ``export`` (the folder ``FOLDER/pipeline`` that ``CogVideoXPipeline.from_pretrained`` loads).
Checkpoints are kept in FOLDER; the same command after an interruption goes on from the last one. The digits come with
scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import argparse
from typing import Final

from examples.train_shared import command, loop
from examples.train_shared.pipelines import write_pipeline
from examples.train_tiny_cogvideox.export import build_pipeline
from examples.train_tiny_cogvideox.networks import build_vae
from examples.train_tiny_cogvideox.train_decoder import train_decoder
from examples.train_tiny_cogvideox.train_transformer import encode_clips, scaling_factor, train_transformer
from examples.train_tiny_cogvideox.train_vae import reconstruction_psnr, train_vae

STAGES: Final = ("vae", "transformer", "decoder", "export")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = command.parser("Train the tiny CogVideoX pipeline on moving digits.", STAGES)
    parser.add_argument("--vae-iterations", type=int, default=1400, help="length of the autoencoder's training")
    parser.add_argument("--iterations", type=int, default=4000, help="length of the transformer's training")
    parser.add_argument("--decoder-iterations", type=int, default=800, help="length of the decoder's own training")
    parser.add_argument("--clips", type=int, default=6144, help="clips that the transformer learns from")
    return parser.parse_args()


def main() -> None:
    """Run the stages that the command line asks for."""
    options = parse_options()
    stages = command.set_up(options, STAGES)
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
        write_pipeline(build_pipeline(options.out), options.out)


if __name__ == "__main__":
    main()
