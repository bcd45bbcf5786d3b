"""The worker's preparation against nnU-Net's commands, array by array; test_nnunet.py runs it as a process."""
# ruff: noqa: SIM112 (the names of nnU-Net's environment variables are its own)

import json
import os
import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    from baselines.nnunet_data import prepare, write_raw
    from baselines.nnunet_worker import set_environment

    job = json.loads(Path(sys.argv[1]).read_text())
    set_environment(job)
    for name in ("raw", "preprocessed", "results"):
        Path(os.environ["nnUNet_" + name]).mkdir(parents=True)
    expert = job["experts"][0]
    folder = Path(os.environ["nnUNet_preprocessed"]) / expert["name"]
    write_raw(expert)

    def read():
        data = folder / "nnUNetPlans_2d"
        cases = {}
        for case in nnUNetDatasetBlosc2.get_identifiers(str(data)):
            image, seg, _, properties = nnUNetDatasetBlosc2(str(data)).load_case(case)
            cases[case] = image[:], seg[:], properties["class_locations"][1]
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        return cases, plans

    # the real commands first: the worker then replaces their pools
    extract_fingerprints([1], num_processes=1, check_dataset_integrity=True)
    plan_experiments([1], gpu_memory_target_in_gb=8)
    preprocess([1], configurations=["2d"], num_processes=[1])
    real_cases, real_plans = read()
    prepare(expert, job["budget"], processes=0)
    cases, plans = read()
    assert set(cases) == set(real_cases) == {case["id"] for case in expert["cases"]}
    for case, arrays in cases.items():
        for ours, theirs in zip(arrays, real_cases[case], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    statistics = "foreground_intensity_properties_per_channel"
    ours, theirs = plans.pop(statistics), real_plans.pop(statistics)
    assert plans == real_plans
    np.testing.assert_allclose(ours["0"]["mean"], theirs["0"]["mean"], rtol=0.01)
    print("equal")
