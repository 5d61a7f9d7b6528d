"""``napari-muvit probe``: how much a model's features know."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from napari_muvit.doors.options import Parser
from napari_muvit.errors import ConfigError


def probe(args: Sequence[str]) -> int:
    """Judge a model's frozen features by a linear classifier: ROC-AUC of each class."""
    parser = Parser(prog="napari-muvit probe", description=probe.__doc__)
    parser.add_argument("image", metavar="IMAGE", help="Image to learn from.")
    parser.add_argument("--labels", required=True, metavar="L", help="Its label image.")
    parser.add_argument("--model", required=True, metavar="RUN", help="Run or model folder.")
    parser.add_argument("--level", type=float, default=1, metavar="N",
                        help="Level whose features are judged (default: 1).")
    parser.add_argument("--test-image", metavar="IMAGE",
                        help="Another image to judge on; by default places of IMAGE.")
    parser.add_argument("--test-labels", metavar="L", help="Its label image.")
    parser.add_argument("--unlabelled", type=int, metavar="V",
                        help="Label value that means not judged.")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="Of the places held out (default: 0).")
    parser.add_argument("--device", default="auto", metavar="X", help="auto, cpu, mps or cuda.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    given = parser.parse_strictly(args)
    if (given.test_image is None) != (given.test_labels is None):
        raise ConfigError("test_image and test_labels go together; pass both or neither.",
                          field="test_image")
    from napari_muvit import api

    test = None if given.test_image is None else (given.test_image, given.test_labels)
    scores = api.probe(
        given.image, given.labels, given.model, given.level, test=test,
        unlabelled=given.unlabelled, seed=given.seed, device=given.device,
    )
    text = json.dumps(scores.to_dict(), indent=2) if given.json else str(scores)
    sys.stdout.write(text + "\n")
    return 0
