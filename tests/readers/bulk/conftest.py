"""A small download from GDC, by hand: files as the client lays them out, sheet and manifest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ENDING = ".rna_seq.augmented_star_gene_counts.tsv"
TALLIES = ("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous")
GENES = (
    ("ENSG00000000003.15", "TSPAN6"),
    ("ENSG00000000005.6", "TNMD"),
    ("ENSG00000000419.13", "DPM1"),
    ("ENSG00000002586.20", "CD99"),
    ("ENSG00000002586.20_PAR_Y", "CD99"),
    ("ENSG00000288675.1", "AC006486.3"),
)
"""The first and the last of a published file, and a gene of the pseudo-autosomal region."""

COUNTS = {"a": (2370, 1, 2770, 900, 30, 0), "b": (100, 0, 300, 50, 0, 7), "c": (5, 6, 7, 8, 9, 10)}
SHEET = "File ID\tFile Name\tData Category\tData Type\tProject ID\tCase ID\tSample ID\tSample Type"
LATER_SHEET = SHEET.replace(
    "Sample Type", "Tissue Type\tTumor Descriptor\tSpecimen Type\tPreservation Method"
)


def star_text(counts: Sequence[int], genes=GENES, model: str = "GENCODE v36") -> str:
    """A file as GDC writes it; TPM sum to 1e6, FPKM are half of them."""
    lines = [f"# gene-model: {model}", "\t".join(
        ("gene_id", "gene_name", "gene_type", "unstranded", "stranded_first", "stranded_second",
         "tpm_unstranded", "fpkm_unstranded", "fpkm_uq_unstranded"))]  # fmt: skip
    lines += [f"{name}\t\t\t{n}\t{n}\t{n}\t\t\t" for n, name in enumerate(TALLIES, 4850100)]
    total = sum(counts)
    for (gene, symbol), count in zip(genes, counts, strict=True):
        tpm = count / total * 1e6
        numbers = (
            f"{count}\t{count // 2}\t{count - count // 2}\t{tpm:.4f}\t{tpm / 2:.4f}\t{tpm:.4f}"
        )
        lines.append(f"{gene}\t{symbol}\tprotein_coding\t{numbers}")
    return "\n".join(lines) + "\n"


@dataclass
class Download:
    """What the portal and its client left in a folder."""

    home: Path
    sheet_lines: list[str] = field(default_factory=lambda: [SHEET])
    manifest_lines: list[str] = field(default_factory=lambda: ["id\tfilename\tmd5\tsize\tstate"])

    @property
    def folder(self) -> Path:
        return self.home / "gdc"

    def add(self, name: str, sample: str, words: str, text: str, case: str = "") -> Path:
        """A file in a folder of its own, as the client puts it, and its lines."""
        path = self.folder / f"id-{name}" / f"{name}{ENDING}"
        (path.parent / "logs").mkdir(parents=True)
        (path.parent / "logs" / f"{path.name}.parcel").write_text("")
        path.write_text(text)
        kind = "Transcriptome Profiling\tGene Expression Quantification\tTCGA-LUAD"
        case = case or sample[:12]
        self.sheet_lines.append(f"id-{name}\t{path.name}\t{kind}\t{case}\t{sample}\t{words}")
        data = path.read_bytes()
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        self.manifest_lines.append(f"id-{name}\t{path.name}\t{md5}\t{len(data)}\treleased")
        return path

    def sheet(self) -> Path:
        path = self.home / "gdc_sample_sheet.2024-03-01.tsv"
        path.write_text("\n".join(self.sheet_lines) + "\n")
        return path

    def manifest(self) -> Path:
        path = self.home / "gdc_manifest.txt"
        path.write_text("\n".join(self.manifest_lines) + "\n")
        return path


@pytest.fixture
def download(tmp_path) -> Download:
    """Two aliquots of one tumour, one of another, and normal tissue; a slide in the same cart."""
    made = Download(tmp_path)
    made.add("f1", "TCGA-38-6178-01A", "Primary Tumor", star_text(COUNTS["a"]))
    made.add("f2", "TCGA-38-6178-01A", "Primary Tumor", star_text(COUNTS["b"]))
    made.add("f3", "TCGA-49-4488-01A", "Primary Tumor", star_text(COUNTS["c"]))
    made.add("f4", "TCGA-49-4488-11A", "Solid Tissue Normal", star_text(COUNTS["b"]))
    slide = "TCGA-38-6178-01Z-00-DX1.2b5b1fd2.svs"
    made.sheet_lines.append(
        f"id-s\t{slide}\tBiospecimen\tSlide Image\tTCGA-LUAD\tTCGA-38-6178\tTCGA-38-6178-01Z\t"
        "Primary Tumor"
    )
    made.manifest_lines.append(f"id-s\t{slide}\t{'0' * 32}\t1234\treleased")
    return made
