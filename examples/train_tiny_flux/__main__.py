"""Make the tiny pipeline from nothing: ``python -m examples.train_tiny_flux --out FOLDER``.

Five stages: ``vae`` (the autoencoder), ``teacher`` (a transformer and its text encoders), ``pairs`` (noises that the
teacher denoised with classifier-free guidance), ``student`` (the transformer that needs few steps and no second
evaluation) and ``export`` (the folder ``FOLDER/pipeline`` that ``FluxPipeline.from_pretrained`` loads). Checkpoints
are kept in FOLDER; the same command after an interruption goes on from the last one. Everything is drawn and seeded
here: nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import torch

from examples.train_shared import loop
from examples.train_tiny_flux.export import export_pipeline
from examples.train_tiny_flux.latents import encode_pictures
from examples.train_tiny_flux.networks import SHIFT, build_vae
from examples.train_tiny_flux.reflow import make_pairs, train_student
from examples.train_tiny_flux.train_flux import train_teacher
from examples.train_tiny_flux.train_vae import reconstruction_psnr, train_vae

STAGES: Final = ("vae", "teacher", "pairs", "student", "export")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the tiny Flux pipeline on drawn pictures.")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished pipeline")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="run one stage only")
    parser.add_argument("--start-from", type=Path, help="a finished pipeline whose weights to go on from")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, pictures and noise")
    parser.add_argument("--vae-iterations", type=int, default=1000, help="length of the autoencoder's training")
    parser.add_argument("--iterations", type=int, default=3200, help="length of the teacher's training")
    parser.add_argument("--student-iterations", type=int, default=2000, help="length of the student's training")
    parser.add_argument("--pictures", type=int, default=16384, help="pictures that the teacher learns from")
    parser.add_argument("--pairs", type=int, default=3072, help="noises that the teacher denoises for the student")
    parser.add_argument("--keep-all", action="store_true", help="keep pairs too whose picture is not as asked")
    parser.add_argument("--shift", type=float, default=SHIFT, help="the exported scheduler's shift")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's training step")
    parser.add_argument("--bfloat16", action="store_true", help="faster where the processor multiplies bfloat16")
    return parser.parse_args()


def main() -> None:
    """Run the stages that the command line asks for."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    loop.use_bfloat16(options.bfloat16)
    out, seed = options.out, options.seed
    stages = STAGES if options.stage == "all" else (options.stage,)
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
        folder = export_pipeline(out, options.shift)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"pipeline: {folder}, {size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
