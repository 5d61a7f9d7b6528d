"""Layers of the viewer that become annotations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from napari_muvit.errors import InputError
from napari_muvit.plugin import annotate
from napari_muvit.plugin.annotate_session import METADATA_KEY, AnnotationSession
from napari_muvit.plugin.layers import plane_index


class LayerImport:
    """One layer on its way into the store of a session.

    What touches the layer runs in the constructor and in the methods that say so; the others may
    run in a thread.

    Parameters
    ----------
    layer
        The layer that is chosen in the viewer, or None.
    viewer_point
        Where the sliders stand; chooses the plane of a volume.
    """

    def __init__(
        self, backend: Any, session: AnnotationSession, layer: Any, viewer_point: Sequence[float]
    ) -> None:
        if layer is None or METADATA_KEY in layer.metadata:
            raise InputError(
                "no layer to import is chosen. Choose a labels or shapes layer in the layer list."
            )
        self._backend, self._session, self._layer = backend, session, layer
        self._point = viewer_point
        self._name = layer.name
        self._array: Any = None
        self._level = 1
        self._corner: Any = None
        self._values: list[int] = []

    def check_labels(self) -> None:
        """Take the pixels and the place of the layer (in the GUI thread).

        Raises
        ------
        InputError
            If it is no labels layer, or does not fit the image.
        """
        from napari.layers import Labels

        layer = self._layer
        if not isinstance(layer, Labels):
            raise InputError(f"{layer.name!r} is no labels layer. Choose one in the layer list.")
        transform = self._session.image.transform
        self._level, self._corner = annotate.label_place(layer, transform, self._point)
        num_axes = transform.num_axes
        if layer.ndim < num_axes:  # a plane, which goes where the sliders stand
            self._array = annotate.layer_plane(layer, ())[None]
            return
        index = list(plane_index(layer, self._point, num_axes).values())
        self._array = annotate.layer_plane(layer, index)

    def table_for_labels(self) -> Any:
        """The class table with a class for each value that `check_labels` has found.

        Raises
        ------
        InputError
            If the values are no classes.
        """
        values = annotate.distinct_values(self._array)
        if values is None or max(values, default=0) > 255:
            raise InputError(
                f"{self._name!r} has more values than a store has classes. Import it as "
                "objects of one class."
            )
        self._values = values
        return annotate.extend_table(
            self._session.store.classes, values, self._backend.LabelClass
        )

    def steps_for_labels(self) -> Iterator[Any]:
        """Give the store the classes it lacks, then paint.

        Yields the table, the edit's number, and what to say.
        """
        known, table = self._session.store.classes, self.table_for_labels()
        if table != known:
            self._session.store.set_classes(table)
            yield table
        yield self.paint_labels()
        names = [f"{item.value} as {item.name!r}" for item in known.classes
                 if item.value in self._values]
        yield f"{', '.join(['The labels are painted', *names])}."

    def paint_labels(self) -> int:
        """Paint values as classes; 0 is left alone, as in napari it means nothing."""
        edit: int = self._backend.paint_labels(
            self._session.store, self._array, unlabelled=0, level=self._level,
            corner=self._corner,
        )
        return edit

    def paint_objects(self, value: int) -> int:
        """Paint everything above 0 as one class."""
        edit: int = self._backend.paint_instances(
            self._session.store, self._array, value, level=self._level, corner=self._corner
        )
        return edit

    def polygons(self, value: int) -> list[Any]:
        """Areas of a shapes layer in world px (in the GUI thread).

        Raises
        ------
        InputError
            If it is no shapes layer, or empty.
        """
        from napari.layers import Shapes

        layer = self._layer
        if not isinstance(layer, Shapes) or not len(layer.data):
            raise InputError(
                f"{layer.name!r} is no shapes layer with shapes. Choose one in the layer list."
            )
        transform = self._session.image.transform
        return annotate.shape_polygons(
            layer, transform, value, self._backend.Polygon, self._point)
