"""Small synthetic collections in every layout, written on demand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from ssl3d import prepare
from ssl3d.data import store

SHAPE = (20, 22, 18)
SIGNED_PERMUTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def scan(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A bright ball in air, whole numbers, different for each seed. int16 [*shape]."""
    random = np.random.default_rng(seed)
    centre = (np.asarray(shape) - 1) / 2
    distance = np.linalg.norm(np.indices(shape).T - centre, axis=-1).T
    values = random.integers(0, 30, shape)
    values[distance < min(shape) / 2 - 1] += 400
    return values.astype(np.int16)


def segmentation(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Labels 1 and 2 inside the ball. uint8 [*shape]."""
    label = np.zeros(shape, np.uint8)
    label[6:12, 6:12, 6:12] = 1
    label[8:10, 8:10, 8:10] = 2
    return label


def orientation_affine(
    axes: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> np.ndarray:
    """Voxel axis i points along world axis `axes[i]`, in the direction `signs[i]`."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for voxel, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[world, voxel] = sign * spacing[voxel]
    affine[:3, 3] = (-31.0, 12.5, 7.0)
    return affine


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def write_msd(folder: Path, count: int = 6, unlabelled: int = 1) -> Path:
    training = []
    for i in range(count):
        write_nifti(folder / f"imagesTr/case_{i:02d}.nii.gz", scan(i))
        write_nifti(folder / f"labelsTr/case_{i:02d}.nii.gz", segmentation())
        training.append(
            {
                "image": f"./imagesTr/case_{i:02d}.nii.gz",
                "label": f"./labelsTr/case_{i:02d}.nii.gz",
            }
        )
    test = []
    for i in range(count, count + unlabelled):
        write_nifti(folder / f"imagesTs/case_{i:02d}.nii.gz", scan(i))
        test.append(f"./imagesTs/case_{i:02d}.nii.gz")
    document = {
        "name": "Hippocampus",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": training,
        "test": test,
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def write_nnunet(folder: Path, count: int = 3) -> Path:
    for i in range(count):
        for channel in range(2):
            write_nifti(folder / f"imagesTr/c{i}_{channel:04d}.nii.gz", scan(10 * i + channel))
        write_nifti(folder / f"labelsTr/c{i}.nii.gz", segmentation())
    document = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "body": 1, "core": 2},
        "file_ending": ".nii.gz",
        "numTraining": count,
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


BRATS_SPELLINGS = {
    "Brats18_TCIA01_231_1": ("{}_t1ce.nii.gz", "{}_flair.nii.gz", "{}_t1.nii.gz", "{}_t2.nii.gz"),
    "BraTS20_Training_001": ("{}_t1ce.nii", "{}_flair.nii", "{}_t1.nii", "{}_t2.nii"),
    "BraTS2021_00002": ("{}_t1ce.nii.gz", "{}_flair.nii.gz", "{}_t1.nii.gz", "{}_t2.nii.gz"),
    "BraTS-GLI-00003-000": ("{}-t1c.nii.gz", "{}-t2f.nii.gz", "{}-t1n.nii.gz", "{}-t2w.nii.gz"),
}


def write_brats(folder: Path) -> Path:
    for i, (case, names) in enumerate(BRATS_SPELLINGS.items()):
        place = folder / ("HGG" if i == 0 else "") / case
        for channel, name in enumerate(names):
            image = scan(10 * i + channel)
            image[image < 100] = 0
            write_nifti(place / name.format(case), image)
        label = segmentation()
        label[label == 2] = 3 if case.startswith("BraTS-") else 4
        label[6] = 2 * (label[6] > 0)
        separator = "-" if case.startswith("BraTS-") else "_"
        write_nifti(place / f"{case}{separator}seg.nii.gz", label)
    return folder


def write_ukb(folder: Path, subjects: int = 3) -> Path:
    mask = (scan(0) > 100).astype(np.uint8)
    for i in range(subjects):
        subject = f"100000{i}"
        for instance in ("2_0", "3_0") if i == 0 else ("2_0",):
            t1 = folder / f"{subject}_20252_{instance}" / "T1"
            flair = folder / f"{subject}_20253_{instance}" / "T2_FLAIR"
            write_nifti(t1 / "T1.nii.gz", scan(7 * i + int(instance[0])))
            write_nifti(t1 / "T1_brain_mask.nii.gz", mask)
            write_nifti(flair / "T2_FLAIR.nii.gz", scan(90 + 7 * i + int(instance[0])))
    return folder


def write_bids(folder: Path, subjects: int = 3) -> Path:
    for i in range(subjects):
        for session in ("01", "02"):
            stem = f"sub-{i}_ses-{session}"
            anat = Path(f"sub-{i}/ses-{session}/anat")
            for number, suffix in enumerate(("T1w", "FLAIR")):
                image = scan(100 * i + 10 * int(session) + number)
                write_nifti(folder / anat / f"{stem}_{suffix}.nii.gz", image)
            labels = folder / "derivatives" / "lesions" / anat
            write_nifti(labels / f"{stem}_space-T1w_dseg.nii.gz", segmentation())
    table = "index\tname\n1\tlesion\n2\tcore\n"
    (folder / "derivatives/lesions/dseg.tsv").write_text(table)
    return folder


def write_folder(folder: Path, count: int = 4) -> Path:
    for i in range(count):
        write_nifti(folder / f"images/site{i % 2}/scan{i}.nii.gz", scan(i))
        write_nifti(folder / f"labels/site{i % 2}/scan{i}_seg.nii.gz", segmentation())
    return folder


def fundus(seed: int, size: int = 64) -> np.ndarray:
    """A disc in the dark. uint8 [size, size, 3]."""
    random = np.random.default_rng(seed)
    picture = random.integers(0, 4, (size, size, 3))
    rows, columns = np.indices((size, size)) - (size - 1) / 2
    disc = rows**2 + columns**2 < (size / 2 - 6) ** 2
    picture[disc] += random.integers(40, 160, (int(disc.sum()), 3))
    return picture.astype(np.uint8)


def write_images(folder: Path, count: int = 6) -> Path:
    (folder / "train_images").mkdir(parents=True)
    rows = ["id_code,diagnosis"]
    for i in range(count):
        Image.fromarray(fundus(i)).save(folder / f"train_images/eye{i}.png")
        rows.append(f"eye{i},{i % 5}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return folder


def _dicom_header(series: str, patient: str, sop_class: str) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = sop_class
    header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = sop_class
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
    header.StudyInstanceUID = "1.2.3"
    header.SeriesInstanceUID = series
    header.FrameOfReferenceUID = "1.2.4"
    header.PatientID = patient
    header.Modality = "CT"
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit = 15
    header.PixelRepresentation = 1
    return header


def _geometry(affine: np.ndarray) -> tuple[list[float], list[float], np.ndarray, np.ndarray]:
    """Direction cosines, [row, column] spacing, origin and slice step of DICOM (LPS)."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    columns = lps[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    cosines = [*(columns[:, 0] / spacing[0]), *(columns[:, 1] / spacing[1])]
    return cosines, [spacing[1], spacing[0]], lps[:3, 3], columns[:, 2]


def write_series(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray | None = None,
    *,
    patient: str = "P1",
    series: str | None = None,
    skip: tuple[int, ...] = (),
    intercept: float = 0.0,
    compress: str | None = None,
    order: np.random.Generator | None = None,
) -> Path:
    """One file per slice of `array` [columns, rows, slices], stored as value - intercept."""
    folder.mkdir(parents=True, exist_ok=True)
    series = series or generate_uid()
    cosines, spacing, origin, step = _geometry(np.eye(4) if affine is None else affine)
    names = np.arange(array.shape[2]) if order is None else order.permutation(array.shape[2])
    for k in range(array.shape[2]):
        if k in skip:
            continue
        header = _dicom_header(series, patient, CTImageStorage)
        header.Rows, header.Columns = array.shape[1], array.shape[0]
        header.PixelSpacing = [float(x) for x in spacing]
        header.ImageOrientationPatient = [float(x) for x in cosines]
        header.ImagePositionPatient = [float(x) for x in origin + k * step]
        header.InstanceNumber = int(names[k]) + 1
        header.RescaleSlope, header.RescaleIntercept = 1, intercept
        stored = (array[:, :, k].T - intercept).astype("<i2")
        header.PixelData = np.ascontiguousarray(stored).tobytes()
        path = folder / f"slice{names[k]:03d}.dcm"
        header.save_as(path, enforce_file_format=True)
        if compress:
            _compress(path, compress)
    return folder


def _compress(path: Path, syntax: str) -> None:
    """Rewrites a file in one of GDCM's transfer syntaxes, such as "JPEG2000Lossless"."""
    import gdcm  # late: imported before zlib it replaces zlib's functions by its own and crashes

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


def write_multiframe(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """One enhanced CT file, its frames in a shuffled order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cosines, spacing, origin, step = _geometry(np.eye(4) if affine is None else affine)
    header = _dicom_header(generate_uid(), "P2", EnhancedCTImageStorage)
    header.Rows, header.Columns = array.shape[1], array.shape[0]
    order = np.random.default_rng(0).permutation(array.shape[2])
    header.NumberOfFrames = len(order)
    shared, measures, orientation, values = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [float(x) for x in spacing]
    orientation.ImageOrientationPatient = [float(x) for x in cosines]
    values.RescaleSlope, values.RescaleIntercept = 1, 0
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelValueTransformationSequence = Sequence([values])
    header.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in order:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [float(x) for x in origin + k * step]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = Sequence(frames)
    pixels = np.stack([array[:, :, k].T for k in order]).astype("<i2")
    header.PixelData = np.ascontiguousarray(pixels).tobytes()
    header.save_as(path, enforce_file_format=True)
    return path


def write_dicom(folder: Path) -> Path:
    write_series(folder / "a/series1", scan(1) - 200, patient="P1")
    write_series(folder / "b/c/series2", scan(2) - 200, patient="P2", intercept=-1024)
    write_multiframe(folder / "d/volume.dcm", scan(3) - 200)
    return folder


def edit_dicom(path: Path, **values: object) -> None:
    header = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)


WRITERS = {
    "msd": write_msd,
    "nnunet": write_nnunet,
    "brats": write_brats,
    "ukb": write_ukb,
    "bids": write_bids,
    "folder": write_folder,
    "dicom": write_dicom,
    "images": write_images,
}
# Options of the command besides the layout.
ARGUMENTS = {
    "msd": [],
    "nnunet": [],
    "brats": ["--size=24"],
    "ukb": ["--size=24"],
    "bids": [],
    "folder": ["--recipe=mr"],
    "dicom": [],
    "images": ["--size=32"],
}


def prepared(
    source: Path, output: Path, layout: str | None, *options: str, workers: int = 1
) -> store.Dataset | None:
    """The data set that `ssl3d.prepare` writes; None for a dry run."""
    arguments = [f"--source={source}", f"--output={output}"]
    arguments += [f"--layout={layout}"] if layout else []
    prepare.main([*arguments, f"--workers={workers}", *options])
    return None if "--dry-run" in options else store.read(output)


def run_prepare(
    layout: str, source: Path, output: Path, *more: str, workers: int = 1
) -> store.Dataset | None:
    """`prepared`, of a collection of this module."""
    return prepared(source, output, layout, *ARGUMENTS[layout], *more, workers=workers)
