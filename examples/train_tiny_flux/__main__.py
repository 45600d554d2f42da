"""Make the tiny pipeline from nothing: ``python -m examples.train_tiny_flux --out FOLDER``.

Five stages: ``vae`` (the autoencoder), ``teacher`` (a transformer and its text encoders), ``pairs`` (noises that the
teacher denoised with classifier-free guidance), ``student`` (the transformer that needs few steps and no second
evaluation) and ``export`` (the folder ``FOLDER/pipeline`` that ``FluxPipeline.from_pretrained`` loads). Checkpoints
are kept in FOLDER; the same command after an interruption goes on from the last one. Everything is drawn and seeded
here: nothing is downloaded.
"""

from __future__ import annotations

import argparse
from typing import Final

from examples.train_shared import command, loop
from examples.train_shared.pipelines import write_pipeline
from examples.train_tiny_flux.export import build_pipeline
from examples.train_tiny_flux.latents import encode_pictures
from examples.train_tiny_flux.networks import SHIFT, build_vae
from examples.train_tiny_flux.reflow import make_pairs, train_student
from examples.train_tiny_flux.train_flux import train_teacher
from examples.train_tiny_flux.train_vae import reconstruction_psnr, train_vae

STAGES: Final = ("vae", "teacher", "pairs", "student", "export")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = command.parser("Train the tiny Flux pipeline on drawn pictures.", STAGES)
    parser.add_argument("--vae-iterations", type=int, default=1000, help="length of the autoencoder's training")
    parser.add_argument("--iterations", type=int, default=3200, help="length of the teacher's training")
    parser.add_argument("--student-iterations", type=int, default=2000, help="length of the student's training")
    parser.add_argument("--pictures", type=int, default=16384, help="pictures that the teacher learns from")
    parser.add_argument("--pairs", type=int, default=3072, help="noises that the teacher denoises for the student")
    parser.add_argument("--keep-all", action="store_true", help="keep pairs too whose picture is not as asked")
    parser.add_argument("--shift", type=float, default=SHIFT, help="the exported scheduler's shift")
    return parser.parse_args()


def main() -> None:
    """Run the stages that the command line asks for."""
    options = parse_options()
    out, seed = options.out, options.seed
    stages = command.set_up(options, STAGES)
    if "vae" in stages:
        vae = train_vae(out, seed, options.vae_iterations, options.start_from)
        print(f"autoencoder: {reconstruction_psnr(vae, seed):.2f} dB on held-out pictures", flush=True)
    if "teacher" in stages:
        vae = build_vae()
        vae.load_state_dict(loop.need_checkpoint(out / "vae.pt", "--stage vae")["vae"])
        data = encode_pictures(vae.eval(), out, seed, options.pictures)
        train_teacher(out, data, seed, options.iterations, options.start_from, compiled=options.compile)
    if "pairs" in stages or "student" in stages:
        ids = loop.need_checkpoint(out / "latents.pt", "--stage teacher")["ids"]
        pairs = make_pairs(out, ids, seed, options.pairs, options.keep_all)
        print(f"pairs: {len(pairs['ids'])} of {options.pairs} are kept", flush=True)
    if "student" in stages:
        train_student(out, pairs, seed, options.student_iterations, options.start_from, compiled=options.compile)
    if "export" in stages:
        write_pipeline(build_pipeline(out, options.shift), out)


if __name__ == "__main__":
    main()
