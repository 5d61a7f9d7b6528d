"""Your own image, from nothing to a prediction: python examples/own_image.py IMAGE LABELS OUT.

Levels and crop size are chosen by the size of the image; give more steps for a real result.
"""

import sys
from pathlib import Path

import napari_muvit as muvit


def main(image: str, labels: str, folder: str, steps: int = 200, crop_size: int = 128) -> None:
    out = Path(folder)
    pyramid = muvit.open_pyramid(image)
    coarsest = max(1, min(32, max(pyramid.spatial_shape[-2:]) // crop_size))
    levels = [1] if coarsest == 1 else [1, coarsest]
    shared = {"images": [image], "levels": levels, "crop_size": crop_size, "preset": "tiny",
              "steps": steps, "batch_size": 4}
    muvit.pretrain(shared | {"output": str(out / "pretrained")}).wait()
    finished = muvit.finetune(shared | {
        "labels": [labels], "pretrained": str(out / "pretrained"), "output": str(out / "finetuned"),
    }).wait()
    print(finished)
    for event in muvit.predict_to_zarr(image, out / "finetuned", out / "prediction.ome.zarr"):
        print(event)
    print(muvit.evaluate(out / "prediction.ome.zarr", labels))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
