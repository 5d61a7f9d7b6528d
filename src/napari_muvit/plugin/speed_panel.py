"""The speed of a run to come: measured on request, remembered, and said in words."""

from __future__ import annotations

from qtpy.compat import isalive
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QHBoxLayout, QPushButton, QWidget

from napari_muvit.config import RunConfig
from napari_muvit.plugin.background import Job
from napari_muvit.plugin.dock import DockWidget, wrapped_label
from napari_muvit.plugin.notices import notifies, show_failure
from napari_muvit.plugin.speed import (
    MEASURED,
    WARM_UP,
    SpeedCheck,
    keep_speed,
    known_speed,
    time_text,
)


class SpeedPanel(QWidget):  # type: ignore[misc]
    """A button that measures, and how long the run takes.

    Signals
    -------
    changed
        A measurement began or ended.
    """

    changed = Signal()

    def __init__(self, dock: DockWidget) -> None:
        super().__init__()
        self._dock = dock
        self._verb = ""
        self._config: RunConfig | None = None
        self._measured: tuple[str, RunConfig] | None = None
        self.check: SpeedCheck | None = None
        self.job: Job | None = None
        self.measure = QPushButton("Measure time")
        self.measure.setToolTip(
            f"Train {WARM_UP + MEASURED} steps of this run, keep nothing of them, and say how "
            "long all of its steps will take on this computer."
        )
        self.measure.clicked.connect(self._on_measure)
        self.text = wrapped_label()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.text, 1)
        layout.addWidget(self.measure)

    @property
    def is_busy(self) -> bool:
        return self.job is not None

    def judge(self, verb: str, config: RunConfig | None) -> None:
        """Say how long the run of `config` takes, where that is known."""
        self._verb, self._config = verb, config
        if self.job is not None:
            return
        known = None if config is None else known_speed(verb, config)
        if config is None or known is None:
            self.text.setText("")
        else:
            self.text.setText(time_text(config, known))

    def allow(self, is_allowed: bool) -> None:
        """Whether a measurement may begin; one that is under way may always be cancelled."""
        self.measure.setEnabled(is_allowed or self.is_busy)

    @notifies
    def _on_measure(self, checked: bool = False) -> None:
        if self.check is not None:
            self.measure.setEnabled(False)
            self.check.stop()
            return
        if self._config is None:
            return
        self._measured = self._verb, self._config
        self.check = SpeedCheck(self._dock.backend, *self._measured)
        self.job = Job(self.check.steps)
        self.job.reported.connect(self._on_step)
        self.job.ended.connect(self._on_ended)
        self.destroyed.connect(self.check.stop)
        self.measure.setText("Cancel")
        self.text.setText("Building the model …")
        self.job.start()
        self.changed.emit()

    def _on_step(self, done: int) -> None:
        if isalive(self.text):  # the viewer may have been closed since the step was sent
            self.text.setText(f"Measuring: step {done} of {WARM_UP + MEASURED} …")

    @notifies
    def _on_ended(self, error: BaseException | None) -> None:
        check, measured = self.check, self._measured
        self.check, self.job, self._measured = None, None, None
        if not isalive(self.text):
            return
        self.measure.setText("Measure time")
        if error is None and check is not None and measured is not None:
            found = check.crops_per_second
            if found is not None:
                keep_speed(*measured, found)
        self.judge(self._verb, self._config)
        self.changed.emit()
        if error is not None:
            show_failure(error)

