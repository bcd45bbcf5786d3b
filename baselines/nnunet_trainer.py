"""nnU-Net's own trainer, reporting, and the check that it has seen exactly our cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def trainer_class() -> type:
    """nnU-Net's trainer without mirroring, reporting and without plots.

    A mirrored left kidney is a right one: nnU-Net ships this trainer for such objects, and every expert gets it. A
    function, as importing nnU-Net takes seconds.
    """
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
        nnUNetTrainerNoMirroring,
    )

    class BudgetTrainer(nnUNetTrainerNoMirroring):
        """Network, loss, deep supervision, augmentation, oversampling, optimiser and schedule: nnU-Net's."""

        on_iteration: Callable[[int], None]
        on_epoch: Callable[[int, dict], None]

        # nnU-Net reads these names from the signature, so *args would not do
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.iterations = 0
            # drawing progress.png takes seconds an epoch; the curves go to the parent instead
            self.logger.plot_progress_png = lambda *_: None

        def plot_network_architecture(self):
            """Nothing: needs a package that is not there."""

        def _save_debug_information(self):
            """Nothing: it would write the machine's name into the run."""

        def train_step(self, batch):
            """nnU-Net's step, counted."""
            result = super().train_step(batch)
            self.iterations += 1
            self.on_iteration(self.iterations)
            return result

        def on_epoch_end(self):
            """nnU-Net's, then the report of the epoch's point of the curves."""
            super().on_epoch_end()
            latest = {
                key: self.logger.get_value(key, -1) for key in ("train_losses", "val_losses", "mean_fg_dice", "lrs")
            }
            self.on_epoch(self.iterations, {key: float(value) for key, value in latest.items()})

    return BudgetTrainer


def check_cases(trainer: Any, expert: dict) -> dict[str, list[str]]:
    """The cases that nnU-Net trains and validates on ("train", "val"), as its trainer has them.

    Raises RuntimeError unless they are exactly ours and it has seen no other. (If the asked fold were not in
    splits_final.json, nnU-Net would note it and draw a random split of its own.)
    """

    def check(ours: Any, theirs: Any, what: str) -> None:
        if ours != theirs:
            raise RuntimeError(f"{expert['name']}: {what}: nnU-Net has other cases than the split")

    wanted = {part: [case["id"] for case in expert["cases"] if part in case["splits"]] for part in ("train", "val")}
    used = dict(zip(("train", "val"), map(list, trainer.do_split()), strict=True))
    check(wanted, used, "its split")
    present = set(trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder))
    check(set(wanted["train"]) | set(wanted["val"]), present, "its preprocessed data")
    for part, loader in (("train", trainer.dataloader_train), ("val", trainer.dataloader_val)):
        if loader is not None:  # the loaders as they were used
            loader = getattr(loader, "data_loader", getattr(loader, "generator", None))
            check(set(wanted[part]), set(loader.indices), f"its {part} loader")
    return used
