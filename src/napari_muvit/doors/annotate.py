"""`napari-muvit annotate`: outlines of QuPath become labels to train on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from napari_muvit.doors.options import Parser
from napari_muvit.doors.shell import say
from napari_muvit.errors import InputError


def annotate(args: Sequence[str]) -> int:
    """Paint GeoJSON outlines, as QuPath exports them, into the labels beside an image."""
    parser = Parser(prog="napari-muvit annotate", description=annotate.__doc__)
    parser.add_argument("image", metavar="IMAGE", help="The image that the outlines belong to.")
    parser.add_argument("outlines", metavar="GEOJSON", nargs="+",
                        help="Areas with a class; of two that overlap the later one is kept.")
    parser.add_argument("--output", metavar="LABELS.ome.zarr",
                        help="Label store; IMAGE_annotations.ome.zarr beside the image if absent, "
                             "which is where napari paints too. One that is there is added to.")
    given = parser.parse_strictly(args)
    from napari_muvit import api

    with api.open_annotations(given.image, classes=_background_alone(),
                              path=given.output) as store:
        for path in given.outlines:
            polygons, table = api.read_geojson(path, store.classes)
            if not polygons:
                raise InputError(f"{path} holds no area with a class. Draw areas, give each a "
                                 "class, and export them again.")
            if table != store.classes:
                store.set_classes(table)
            api.paint_polygons(store, polygons)
        counts = store.class_counts()
        for item in store.classes.classes:
            sys.stdout.write(f"{item.value}\t{item.name}\t{counts.get(item.value, 0)} px\n")
        say(f"annotate: wrote {store.path}")
    return 0


def _background_alone() -> object:
    """The class table of a new store; the outlines bring their own classes."""
    from napari_muvit import api

    table = api.default_class_table()
    first = tuple(item for item in table.classes if item.value == table.background)
    return api.ClassTable(first, unlabelled=table.unlabelled, background=table.background)
