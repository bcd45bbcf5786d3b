"""The numbers the paper reports, as data: Tables 1, 2, 3-8 and 9 of Zhao et al., CVPR 2025 (arXiv 2503.02841)."""

# Dice in percent, Table 1. Columns in the paper's order.
DATASETS = ("LIDC-IDRI", "AMOS22-CT", "AMOS22-MRI", "MSD-Lung", "MSD-Pancreas", "MSD-HepaticVessel", "MSD-Colon")

# The paper's column headers of Table 1.
DATASET_LABELS = {
    "LIDC-IDRI": "LIDC",
    "AMOS22-CT": "AMOS-CT",
    "AMOS22-MRI": "AMOS-MRI",
    "MSD-Lung": "MSD-Lung",
    "MSD-Pancreas": "MSD-Panc.",
    "MSD-HepaticVessel": "MSD-HepVes",
    "MSD-Colon": "MSD-Colon",
}

# method -> (average, *one value per data set of DATASETS)
TABLE_1 = {
    "nnU-Net": (67.3, 64.8, 85.0, 85.2, 60.2, 52.4, 61.3, 62.4),
    "BiomedParse": (73.0, 73.8, 91.9, 87.6, 66.1, 60.2, 64.8, 66.4),
    "SAM+Hiera-S (text)": (67.0, 67.1, 88.4, 83.9, 61.6, 55.1, 61.2, 52.0),
    "SAM+Hiera-BP (text)": (64.9, 62.8, 86.7, 81.2, 57.2, 51.4, 60.8, 54.0),
    "SAM2+Hiera-S (text)": (65.6, 65.4, 88.2, 82.6, 59.8, 52.8, 59.8, 50.6),
    "SAM2+Hiera-BP (text)": (66.1, 63.2, 88.1, 82.0, 64.2, 52.9, 60.1, 51.6),
    "SEEM+Hiera-S (text)": (71.5, 72.1, 91.1, 88.2, 65.9, 61.4, 63.9, 58.0),
    "SEEM+Hiera-BP (text)": (73.8, 72.9, 92.0, 89.3, 69.3, 64.6, 65.7, 63.3),
    "BoltzFormer+Hiera-S": (73.8, 73.3, 91.3, 88.7, 70.4, 63.7, 64.4, 65.2),
    "BoltzFormer+Hiera-BP": (74.5, 73.6, 92.0, 89.3, 71.4, 61.0, 66.7, 66.7),
    "BoltzFormer+FocalL": (75.2, 75.4, 92.7, 90.2, 70.2, 64.0, 67.0, 66.7),
}

# (size group, method) -> (Dice in percent, standard error); small is under 1% of the image area
TABLE_2 = {
    ("small", "SAM"): (64.5, 0.52),
    ("small", "SAM2"): (62.1, 0.53),
    ("small", "SEEM"): (68.9, 0.50),
    ("small", "BoltzFormer"): (71.4, 0.44),
    ("large", "SAM"): (82.3, 0.57),
    ("large", "SAM2"): (82.3, 0.57),
    ("large", "SEEM"): (87.1, 0.36),
    ("large", "BoltzFormer"): (87.5, 0.35),
    ("all", "SAM"): (67.1, 0.46),
    ("all", "SAM2"): (65.0, 0.46),
    ("all", "SEEM"): (71.5, 0.44),
    ("all", "BoltzFormer"): (73.7, 0.38),
}

# (ablation, value) -> (average Dice in percent, standard error)
TABLES_3_TO_8 = {
    ("attention", "full attention"): (71.2, 0.43),
    ("attention", "0.5 threshold"): (72.4, 0.41),
    ("attention", "boltzmann sampling"): (73.7, 0.38),
    ("temperature", "0.25"): (73.6, 0.4),
    ("temperature", "0.5"): (73.0, 0.43),
    ("temperature", "1"): (73.7, 0.38),
    ("temperature", "2"): (72.2, 0.42),
    ("samples", "5%"): (72.9, 0.4),
    ("samples", "10%"): (73.7, 0.38),
    ("samples", "20%"): (72.4, 0.42),
    ("samples", "50%"): (73.6, 0.4),
    ("queries", "1"): (72.8, 0.42),
    ("queries", "10"): (73.8, 0.38),
    ("queries", "32"): (73.8, 0.38),
    ("queries", "101"): (73.7, 0.38),
    ("prior", "unconditioned"): (72.3, 0.44),
    ("prior", "text-conditioned"): (73.7, 0.38),
    ("pigma", "query ensemble only"): (73.2, 0.43),
    ("pigma", "with pixel grounded correction"): (73.7, 0.38),
}

# The values of the paper's own model, of which each table has a row.
PAPER_DEFAULTS = {
    "attention": "boltzmann sampling",
    "temperature": "1",
    "samples": "10%",
    "queries": "101",
    "prior": "text-conditioned",
    "pigma": "with pixel grounded correction",
}

# (data set, object) -> (mean, median, min, max of the object area in percent of the image, support)
TABLE_9 = {
    ("LIDC-IDRI", "nodule"): (0.059, 0.029, 0.002, 0.802, 1733),
    ("MSD-Lung", "tumor"): (0.283, 0.200, 0.011, 1.062, 242),
    ("MSD-Pancreas", "tumor"): (0.629, 0.295, 0.018, 5.106, 575),
    ("MSD-Pancreas", "pancreas"): (0.567, 0.465, 0.029, 2.431, 1635),
    ("MSD-HepaticVessel", "tumor"): (0.535, 0.281, 0.005, 3.652, 918),
    ("MSD-HepaticVessel", "vessel"): (0.211, 0.178, 0.017, 0.878, 2204),
    ("MSD-Colon", "tumor"): (0.472, 0.341, 0.036, 2.287, 245),
    ("AMOS22-CT", "adrenal gland"): (0.185, 0.169, 0.037, 0.503, 420),
    ("AMOS22-CT", "esophagus"): (0.142, 0.102, 0.018, 1.189, 1964),
    ("AMOS22-CT", "postcava"): (0.237, 0.218, 0.034, 0.751, 4105),
    ("AMOS22-CT", "spleen"): (1.952, 1.752, 0.142, 6.587, 1587),
    ("AMOS22-CT", "right adrenal gland"): (0.087, 0.073, 0.010, 0.304, 571),
    ("AMOS22-CT", "left kidney"): (1.194, 1.206, 0.065, 2.649, 1776),
    ("AMOS22-CT", "kidney"): (2.509, 2.473, 0.334, 4.798, 1465),
    ("AMOS22-CT", "duodenum"): (0.497, 0.425, 0.036, 2.816, 1677),
    ("AMOS22-CT", "bladder"): (2.216, 1.780, 0.161, 7.851, 864),
    ("AMOS22-CT", "gallbladder"): (0.664, 0.490, 0.035, 2.946, 712),
    ("AMOS22-CT", "liver"): (7.896, 7.285, 0.694, 21.498, 4648),
    ("AMOS22-CT", "right kidney"): (1.171, 1.191, 0.052, 2.295, 1649),
    ("AMOS22-CT", "left adrenal gland"): (0.091, 0.082, 0.004, 0.279, 635),
    ("AMOS22-CT", "pancreas"): (0.818, 0.653, 0.071, 3.016, 1345),
    ("AMOS22-CT", "stomach"): (3.222, 2.724, 0.165, 11.275, 1837),
    ("AMOS22-CT", "aorta"): (0.433, 0.281, 0.051, 3.957, 4409),
    ("AMOS22-MRI", "adrenal gland"): (0.115, 0.111, 0.048, 0.216, 49),
    ("AMOS22-MRI", "esophagus"): (0.064, 0.058, 0.022, 0.167, 134),
    ("AMOS22-MRI", "postcava"): (0.135, 0.116, 0.033, 0.351, 463),
    ("AMOS22-MRI", "spleen"): (1.353, 1.296, 0.130, 2.707, 197),
    ("AMOS22-MRI", "right adrenal gland"): (0.056, 0.053, 0.011, 0.157, 56),
    ("AMOS22-MRI", "left kidney"): (0.917, 0.955, 0.151, 1.774, 237),
    ("AMOS22-MRI", "kidney"): (1.909, 1.913, 0.637, 3.027, 198),
    ("AMOS22-MRI", "duodenum"): (0.280, 0.264, 0.075, 0.860, 201),
    ("AMOS22-MRI", "gallbladder"): (0.407, 0.366, 0.046, 0.914, 75),
    ("AMOS22-MRI", "liver"): (6.060, 5.950, 0.891, 11.907, 304),
    ("AMOS22-MRI", "right kidney"): (0.882, 0.935, 0.146, 1.467, 224),
    ("AMOS22-MRI", "left adrenal gland"): (0.051, 0.045, 0.020, 0.109, 84),
    ("AMOS22-MRI", "pancreas"): (0.583, 0.522, 0.106, 1.626, 195),
    ("AMOS22-MRI", "stomach"): (1.054, 0.975, 0.224, 2.687, 216),
    ("AMOS22-MRI", "aorta"): (0.179, 0.173, 0.075, 0.355, 490),
}
