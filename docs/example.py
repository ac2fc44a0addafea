from histoscribe import PrepareConfig, open_slide, prepare_slide, read_manifest, read_sample
from histoscribe.demo_data.folder import demo_folder

(row,) = read_manifest(demo_folder() / "manifest.csv")
slide = open_slide(row.slide, mpp=row.mpp, slide_id=row.sample)
regions, report = read_sample(row, slide)
cells, tiles = prepare_slide(slide, regions, PrepareConfig(around_regions=True))
print(f"{len(cells)} nuclei around {len(regions)} spots, {cells.features.shape[1]} features each")
