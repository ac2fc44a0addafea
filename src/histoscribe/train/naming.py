"""Naming: slides that name their genes in different ways are brought to one of them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from histoscribe.data.gene_names import check_human, map_names, rename_genes
from histoscribe.data.genes import GenePanel, Namespace
from histoscribe.train.assemble import SlideData

log = logging.getLogger(__name__)


def name_alike(
    slides: Sequence[SlideData],
    panel: GenePanel | None = None,
    tell: Callable[[str], object] = log.info,
) -> list[SlideData]:
    """The slides with genes named as in the panel; slides that have it so are not touched.

    Genes that the table of names does not know keep their name, and so are absent from a panel of
    the other namespace: not measured, never zero.

    Args:
        slides: Slides of any namespace.
        panel: Of a checkpoint, say; None takes Ensembl ids where the slides differ.
        tell: Told in one sentence how many genes were matched, if any had to be renamed.

    Raises:
        MismatchError: If genes that would have to be renamed are not human, or none is known.
    """
    measured = [slide.regions.genes for slide in slides if len(slide.regions.genes)]
    known = [*measured, *([] if panel is None else [panel])]
    spoken = {genes.namespace for genes in known}
    if len(spoken) < 2:
        return list(slides)
    wanted: Namespace = "ensembl" if panel is None else panel.namespace
    for genes in known:
        if genes.namespace == "ensembl":
            check_human(genes.ids)
    names = dict.fromkeys(
        name for genes in measured if genes.namespace != wanted for name in genes.ids
    )
    tell(str(map_names(list(names), wanted)))
    return [
        replace(slide, regions=rename_genes(slide.regions, wanted))
        if len(slide.regions.genes)
        else slide
        for slide in slides
    ]
