"""The phrasings of every target of the suite: "OBJECT in SITE MODALITY" first, then other ways to say it."""

from __future__ import annotations

from experiments.paper import TABLE_9

# data set -> (modality, site as in the canonical phrase, other phrases for "in SITE MODALITY")
SITES = {
    "LIDC-IDRI": ("CT", "lung", ("in chest CT", "on a CT scan of the lung", "in thoracic CT")),
    "MSD-Lung": ("CT", "lung", ("in chest CT", "on a CT scan of the lung", "in thoracic CT")),
    "MSD-Pancreas": (
        "CT",
        "pancreas",
        ("in pancreatic CT", "on a CT scan of the pancreas", "in abdominal CT"),
    ),
    "MSD-HepaticVessel": ("CT", "liver", ("in hepatic CT", "on a CT scan of the liver", "in abdominal CT")),
    "MSD-Colon": ("CT", "colon", ("in colonic CT", "on a CT scan of the colon", "in abdominal CT")),
    "AMOS22-CT": ("CT", "abdomen", ("in abdominal CT", "on a CT scan of the abdomen")),
    "AMOS22-MRI": ("MRI", "abdomen", ("in abdominal MRI", "on an MRI scan of the abdomen")),
}

# object -> other names; those of lesions and vessels depend on the organ
NAMES = {
    "kidney": ("kidneys", "both kidneys"),
    "left kidney": ("kidney on the left side",),
    "right kidney": ("kidney on the right side",),
    "adrenal gland": ("adrenal glands", "suprarenal glands"),
    "left adrenal gland": ("left suprarenal gland",),
    "right adrenal gland": ("right suprarenal gland",),
    "esophagus": ("oesophagus", "gullet"),
    "postcava": ("inferior vena cava",),
    "aorta": ("abdominal aorta",),
    "spleen": ("splenic parenchyma",),
    "liver": ("hepatic parenchyma",),
    "stomach": ("gastric region",),
    "duodenum": ("first part of the small intestine",),
    "bladder": ("urinary bladder",),
    "gallbladder": ("gall bladder",),
    "pancreas": ("pancreatic gland",),
}
LESION_NAMES = {
    ("LIDC-IDRI", "nodule"): ("pulmonary nodule", "lung nodule"),
    ("MSD-Lung", "tumor"): ("neoplasm", "tumour", "cancerous mass"),
    ("MSD-Pancreas", "tumor"): ("pancreatic neoplasm", "tumour", "pancreatic mass"),
    ("MSD-HepaticVessel", "tumor"): ("hepatic neoplasm", "tumour", "liver lesion"),
    ("MSD-HepaticVessel", "vessel"): ("hepatic vessels", "blood vessels"),
    ("MSD-Colon", "tumor"): ("colorectal neoplasm", "tumour", "colon cancer"),
}


def canonical(dataset: str, name: str) -> str:
    """The phrase "OBJECT in SITE MODALITY" that evaluation uses."""
    modality, site, _ = SITES[dataset]
    return f"{name} in {site} {modality}"


def phrasings(dataset: str, name: str) -> tuple[str, ...]:
    """All phrases of a target, canonical first, each once."""
    modality, site, places = SITES[dataset]
    others = NAMES.get(name, ()) if (dataset, name) not in LESION_NAMES else LESION_NAMES[dataset, name]
    phrases = [canonical(dataset, name), *(f"{name} {place}" for place in places)]
    phrases += [f"{other} in {site} {modality}" for other in others]
    phrases += [f"{other} {places[0]}" for other in others]
    return tuple(dict.fromkeys(phrases))


PROMPTS = {(dataset, name): phrasings(dataset, name) for dataset, name in TABLE_9}


def phrases_of(dataset: str, name: str, modality: str, site: str) -> tuple[str, ...]:
    """All phrases of a target, the canonical one first; of a target or site outside the suite that one alone."""
    if (dataset, name) in PROMPTS and site == SITES[dataset][1]:
        return PROMPTS[dataset, name]
    return (f"{name} in {site} {modality}",)
