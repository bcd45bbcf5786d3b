"""Prediction, postprocessing and split against nnU-Net's own. test_nnunet.py runs it in a process of its own."""
# ruff: noqa: SIM112 (the names of nnU-Net's environment variables are its own)

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

if __name__ == "__main__":
    from baselines import nnunet_worker as worker
    from baselines.nnunet_data import label_map, read_image, work_serially, write_raw
    from baselines.nnunet_segmenter import ExpertSegmenter, find_postprocessing

    job = json.loads(Path(sys.argv[1]).read_text())
    worker.set_environment(job)
    for name in ("raw", "preprocessed", "results"):
        Path(os.environ["nnUNet_" + name]).mkdir(parents=True)
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    # prediction: nnU-Net's own, from its own folder of a trained model, file to file
    folder, image, ours = Path(job["expert"]), job["image"], np.asarray(Image.open(job["mask"])) > 0
    model = Path(job["scratch"]) / "model"
    (model / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (model / name).write_text((folder / name).read_text())
    weights = torch.load(folder / "weights.pt", weights_only=True)
    checkpoint = {
        "trainer_name": "nnUNetTrainerNoMirroring",
        "init_args": {"configuration": "2d"},
        "network_weights": weights,
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    predictor = nnUNetPredictor(tile_step_size=job["tile_step"], device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    predictor.predict_from_files_sequential([[image]], [str(model / "out")])
    assert json.loads((folder / "postprocessing.json").read_text()) == []
    np.testing.assert_array_equal(np.asarray(Image.open(model / "out.png")) == 1, ours)
    assert ours.any()

    # postprocessing: chosen where a speck is all that is wrong, not where nothing is; then it takes the speck away
    expert = job["experts"][0]
    work_serially()
    write_raw(expert)
    segmenter = ExpertSegmenter(folder, job["tile_step"])

    class Perfect:
        predictor, speck = segmenter.predictor, 0

        def __call__(self, image):
            case = next(c for c in expert["cases"] if np.array_equal(read_image(c["image_file"]), image))
            labels = label_map(case["masks"], expert["objects"])
            labels[0, :2] = self.speck
            return labels

    found = Perfect()
    assert find_postprocessing(expert, found, 0) == []
    found.speck = 1
    (step,) = find_postprocessing(expert, found, 0)
    worker.write_json(folder / "postprocessing.json", [step])
    cleaning = ExpertSegmenter(folder, job["tile_step"])
    case = expert["cases"][-1]
    labels = found(read_image(case["image_file"]))
    cleaning.predictor.predict_single_npy_array = lambda *_: labels[None]
    found.speck = 0
    pixels = read_image(case["image_file"])
    np.testing.assert_array_equal(cleaning(pixels), found(pixels))

    # split: nnU-Net's trainer with one case less than ours, as with any other, is an error
    real = worker.prepare

    def other_split(expert, budget, processes):
        plans = real(expert, budget, processes)
        file = Path(os.environ["nnUNet_preprocessed"]) / expert["name"] / "splits_final.json"
        (split,) = json.loads(file.read_text())
        file.write_text(json.dumps([{**split, "train": split["train"][1:]}]))
        return plans

    worker.prepare = other_split
    try:
        worker.train(expert, job, lambda *_, **__: None)
    except RuntimeError as error:
        assert "its split: nnU-Net has other cases" in str(error), error
    else:
        raise AssertionError("trained on another split")
    assert not (Path(job["folder"]) / expert["name"] / "weights.pt").exists()
    print("equal")
