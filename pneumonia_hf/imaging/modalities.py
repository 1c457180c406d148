"""DICOM modalities, and which of them are radiographs."""

from __future__ import annotations

# Values of (0008,0060), DICOM PS3.3 C.7.3.1.1.1. OT and SC are scanned or captured X-rays.
RADIOGRAPHY = frozenset({"", "CR", "DX", "DR", "RG", "RF", "XR", "OT", "SC"})
MODALITIES = {
    "BI": "biomagnetic imaging",
    "BMD": "bone densitometry",
    "CT": "computed tomography",
    "DG": "diaphanography",
    "EC": "echocardiography",
    "ECG": "electrocardiography",
    "EPS": "electrophysiology",
    "ES": "endoscopy",
    "GM": "microscopy",
    "HD": "haemodynamics",
    "IO": "dental radiography",
    "IVUS": "intravascular ultrasound",
    "MG": "mammography",
    "MR": "magnetic resonance",
    "NM": "nuclear medicine",
    "OCT": "optical coherence tomography",
    "OP": "photograph of an eye",
    "PT": "positron emission tomography",
    "PX": "panoramic dental radiography",
    "SM": "microscopy of slides",
    "TG": "thermography",
    "US": "ultrasound",
    "XA": "angiography",
    "XC": "photograph",
}
