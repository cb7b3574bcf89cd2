"""Train the demo model: ``python -P -m train_demo.train all --folder demo-model``.

Run with OMP_NUM_THREADS=1: the trainings bring their own threads.
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train_demo.folding import fold_latent_statistics
from train_demo.latent_pool import build_pool
from train_demo.loss_curve import draw_loss_curves
from train_demo.preview_matrix import fit_preview_matrix
from train_demo.small_companions import save_companions, write_profile
from train_demo.training_run import TrainingRun
from train_demo.transformer_training import TransformerSchedule, train_transformer
from train_demo.vae_training import VaeSchedule, train_vae

STAGES = ("encoders", "vae", "transformer")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What to train, and where.

    Attributes:
        folder: pipeline folder to write; a subfolder ``training`` holds logs and checkpoints.
        num_vae_steps: optimizer steps of the VAE.
        num_transformer_steps: optimizer steps of the transformer.
        num_clips: clips that the transformer sees.
        seed: seed of everything.
        is_resumed: continue from the checkpoints.
        stop_after: end a training early, after that step.
    """

    folder: Path
    num_vae_steps: int
    num_transformer_steps: int
    num_clips: int
    seed: int = 0
    is_resumed: bool = False
    stop_after: int | None = None

    def run(self, stage: str) -> TrainingRun:
        """Log and checkpoint of a stage."""
        folder = self.folder / "training" / stage
        return TrainingRun(folder, is_resumed=self.is_resumed, save_every=100)


def train_stage(plan: TrainingPlan, stage: str) -> None:
    """Run one of STAGES; each reads from the folder what those before it wrote."""
    logger.info("Training the demo's %s into %s", stage, plan.folder)
    if stage == "encoders":
        save_companions(plan.folder, seed=plan.seed)
    elif stage == "vae":
        _train_vae(plan)
    else:
        _train_transformer(plan)


def _train_vae(plan: TrainingPlan) -> None:
    schedule = VaeSchedule(num_steps=plan.num_vae_steps, seed=plan.seed)
    vae: Any = train_vae(plan.run("vae"), schedule, stop_after=plan.stop_after).eval()
    fold_latent_statistics(vae, seed=plan.seed)
    matrix = fit_preview_matrix(vae, seed=plan.seed)
    vae.half().save_pretrained(plan.folder / "vae")
    write_profile(plan.folder, latent_rgb=[[round(value, 6) for value in row] for row in matrix.tolist()])


def _train_transformer(plan: TrainingPlan) -> None:
    run = plan.run("transformer")
    pool = build_pool(
        plan.folder, plan.folder / "training" / "pool.safetensors", num_clips=plan.num_clips, seed=plan.seed
    )
    schedule = TransformerSchedule(num_steps=plan.num_transformer_steps, seed=plan.seed)
    transformer: Any = train_transformer(run, schedule, pool, stop_after=plan.stop_after)
    transformer.half().save_pretrained(plan.folder / "transformer")
    logs = {stage: plan.folder / "training" / stage / "losses.jsonl" for stage in ("vae", "transformer")}
    draw_loss_curves(logs, plan.folder / "training" / "losses.png")


def parse_arguments(arguments: list[str] | None = None) -> tuple[TrainingPlan, tuple[str, ...]]:
    """The plan and the stages of a command line."""
    parser = argparse.ArgumentParser(description="Train the demo model from scratch.")
    parser.add_argument("stage", choices=(*STAGES, "all"), help="what to train; all is the three in turn")
    parser.add_argument("--folder", type=Path, default=Path("demo-model"), help="pipeline folder to write")
    parser.add_argument("--vae-steps", type=int, default=VaeSchedule().num_steps)
    parser.add_argument("--transformer-steps", type=int, default=TransformerSchedule().num_steps)
    parser.add_argument("--clips", type=int, default=600, help="clips that the transformer sees")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints in the folder")
    parser.add_argument("--stop-after", type=int, help="end a training early, after that step")
    options = parser.parse_args(arguments)
    plan = TrainingPlan(
        folder=options.folder,
        num_vae_steps=options.vae_steps,
        num_transformer_steps=options.transformer_steps,
        num_clips=options.clips,
        seed=options.seed,
        is_resumed=options.resume,
        stop_after=options.stop_after,
    )
    return plan, STAGES if options.stage == "all" else (options.stage,)


def main() -> None:
    """Entry point of the command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # Every thread of a training computes alone.
    torch.set_num_threads(1)
    plan, stages = parse_arguments()
    for stage in stages:
        train_stage(plan, stage)


if __name__ == "__main__":
    main()
