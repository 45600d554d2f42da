"""Make the tiny pipeline from nothing: ``python -m examples.train_tiny_wan --out FOLDER``.

Three stages: ``vae`` (the autoencoder), ``wan`` (the transformer and the text encoder) and ``export`` (the folder
``FOLDER/pipeline`` that ``WanPipeline.from_pretrained`` loads). Checkpoints are kept in FOLDER; the same command
after an interruption goes on from the last one. Everything is drawn and seeded here: nothing is downloaded.
"""

from __future__ import annotations

import argparse
from typing import Final

from examples.train_shared import command, loop
from examples.train_shared.pipelines import write_pipeline
from examples.train_tiny_wan.export import build_pipeline
from examples.train_tiny_wan.networks import FLOW_SHIFT, build_vae
from examples.train_tiny_wan.train_vae import channels_last, reconstruction_psnr, train_vae
from examples.train_tiny_wan.train_wan import encode_clips, latent_statistics, train_wan

STAGES: Final = ("vae", "wan", "export")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = command.parser("Train the tiny Wan pipeline on drawn clips.", STAGES)
    parser.add_argument("--vae-iterations", type=int, default=1250, help="length of the autoencoder's training")
    parser.add_argument("--iterations", type=int, default=4500, help="length of the transformer's training")
    parser.add_argument("--clips", type=int, default=8192, help="clips that the transformer learns from")
    parser.add_argument("--flow-shift", type=float, default=FLOW_SHIFT, help="the exported scheduler's shift")
    return parser.parse_args()


def main() -> None:
    """Run the stages that the command line asks for."""
    options = parse_options()
    stages = command.set_up(options, STAGES)
    if "vae" in stages:
        vae = train_vae(options.out, options.seed, options.vae_iterations, options.start_from)
        print(f"autoencoder: {reconstruction_psnr(vae, options.seed):.2f} dB on held-out clips", flush=True)
    if "wan" in stages:
        vae = build_vae()
        channels_last(vae)
        vae.load_state_dict(loop.need_checkpoint(options.out / "vae.pt", "--stage vae")["vae"])
        data = encode_clips(vae.eval(), options.out, options.seed, options.clips)
        mean, std = latent_statistics(data["latents"])
        print(f"latents: mean {mean}, standard deviation {std}", flush=True)
        train_wan(options.out, data, options.seed, options.iterations, options.start_from, compiled=options.compile)
    if "export" in stages:
        write_pipeline(build_pipeline(options.out, options.flow_shift), options.out)


if __name__ == "__main__":
    main()
