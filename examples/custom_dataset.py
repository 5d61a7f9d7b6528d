"""The official project's way: a dataset of one's own, and `.fit`.

Only the import lines differ from the official project's README. As a script:
`python examples/custom_dataset.py [OUTPUT]`.
"""

# %%
import sys
from pathlib import Path

import numpy as np
import torch

import napari_muvit as muvit

OUTPUT = Path("custom-dataset")
EPOCHS = 2

if "__file__" in globals() and len(sys.argv) == 2:
    OUTPUT = Path(sys.argv[1])

# %% [markdown]
# A sample is a dict: `img` (levels, channels, y, x) and `bbox` (levels, 2, axes), the outer edges
# of what each level shows, in pixels of full resolution.


# %%
class RandomScenes(muvit.MuViTDataset):
    """Nested crops of smooth random scenes; stands for whatever you have."""

    def __init__(self, count: int, size: int = 32) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    @property
    def n_channels(self) -> int:
        return 1

    @property
    def levels(self) -> tuple[int, ...]:
        return (1, 4)

    @property
    def ndim(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(index)
        scene = rng.normal(size=(16, 16)).repeat(8, 0).repeat(8, 1)
        y, x = rng.integers(0, 128 - self.size, 2)
        fine = scene[y : y + self.size, x : x + self.size]
        coarse = scene.reshape(32, 4, 32, 4).mean((1, 3))
        boxes = [[[y - 0.5, x - 0.5], [y + self.size - 0.5, x + self.size - 0.5]],
                 [[-0.5, -0.5], [127.5, 127.5]]]
        image = np.stack([fine, coarse])[:, None]
        return {"img": torch.tensor(image, dtype=torch.float32),
                "bbox": torch.tensor(boxes, dtype=torch.float32)}


# %%
train, val = RandomScenes(32), RandomScenes(8)
model = muvit.MuViTMAE2d(
    in_channels=train.n_channels, levels=train.levels, patch_size=8, num_layers=2,
    num_layers_decoder=1, dim=64, dim_decoder=64, heads=2,
)
train_dl = torch.utils.data.DataLoader(train, batch_size=8, shuffle=True)
val_dl = torch.utils.data.DataLoader(val, batch_size=8)
model.fit(train_dl, val_dl, output=OUTPUT, num_epochs=EPOCHS)

# %% [markdown]
# What `fit` wrote is the official folder; the muvit package reads it too.

# %%
encoder = muvit.MuViTMAE2d.from_folder(OUTPUT).encoder
sample = val[0]
features = encoder.compute_features(sample["img"][None], sample["bbox"][None])
print(f"features of one sample: {tuple(features.shape)}")
