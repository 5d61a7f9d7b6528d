"""A Qt form for an option class; everything it says comes from the class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_muvit.config import Options
from napari_muvit.plugin.fold import Fold
from napari_muvit.plugin.forms import FormField, form_fields

LARGEST = 2_000_000_000


class ConfigForm(QWidget):  # type: ignore[misc]
    """The options of `kind` in their groups, the advanced ones folded away.

    Parameters
    ----------
    kind
        The option class.
    skip
        Options that the widget around it asks for in its own way.
    """

    changed = Signal()

    def __init__(self, kind: type[Options], skip: Collection[str] = ()) -> None:
        super().__init__()
        self.fields = {field.name: field for field in form_fields(kind, skip)}
        self.editors: dict[str, QWidget] = {}
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        plain = [field for field in self.fields.values() if not field.advanced]
        advanced = [field for field in self.fields.values() if field.advanced]
        layout.addLayout(self._rows(plain, with_groups=False))
        self.more = Fold("Advanced options")
        inside = QWidget()
        inside.setLayout(self._rows(advanced, with_groups=True))
        self.more.addWidget(inside)
        layout.addWidget(self.more)

    def _rows(self, fields: list[FormField], with_groups: bool) -> QFormLayout:
        form = QFormLayout()
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        group = None
        for field in fields:
            if with_groups and field.group != group:
                group = field.group
                form.addRow(QLabel(f"<b>{group}</b>"))
            editor = self._editor(field)
            editor.setToolTip(field.tooltip)
            editor.setMinimumWidth(60)
            label = QLabel(field.title)
            label.setToolTip(field.tooltip)
            form.addRow(label, editor)
            self.editors[field.name] = editor
        return form

    def _editor(self, field: FormField) -> QWidget:
        makers: dict[str, Callable[[FormField], QWidget]] = {
            "flag": self._check, "whole": self._spin, "choice": self._combo,
        }
        return makers.get(field.kind, self._line)(field)

    def _check(self, field: FormField) -> QCheckBox:
        check = QCheckBox()
        check.setChecked(bool(field.default))
        check.toggled.connect(self.changed)
        return check

    def _spin(self, field: FormField) -> QSpinBox:
        spin = QSpinBox()
        spin.setRange(
            0 if field.minimum is None else field.minimum,
            LARGEST if field.maximum is None else field.maximum,
        )
        spin.setValue(int(field.default or 0))
        spin.valueChanged.connect(self.changed)
        return spin

    def _combo(self, field: FormField) -> QComboBox:
        combo = QComboBox()
        combo.addItems(field.choices)
        combo.setCurrentText(str(field.default))
        combo.currentTextChanged.connect(self.changed)
        return combo

    def _line(self, field: FormField) -> QLineEdit:
        line = QLineEdit(field.to_text(field.default))
        unit = f" ({field.unit})" if field.unit else ""
        line.setPlaceholderText(f"default{unit}")
        line.editingFinished.connect(self.changed)
        return line

    def values(self) -> dict[str, Any]:
        """What the form says, by option name; None where nothing was typed."""
        return {name: self._value(name) for name in self.fields}

    def _value(self, name: str) -> Any:
        editor = self.editors[name]
        if isinstance(editor, QCheckBox):
            return editor.isChecked()
        if isinstance(editor, QSpinBox):
            return editor.value()
        if isinstance(editor, QComboBox):
            return editor.currentText()
        return self.fields[name].from_text(editor.text())

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Show `values`; options that the form does not have are left out."""
        for name, value in values.items():
            if name in self.fields:
                self._set_value(name, value)

    def _set_value(self, name: str, value: Any) -> None:
        editor, field = self.editors[name], self.fields[name]
        if isinstance(editor, QCheckBox):
            editor.setChecked(bool(value))
        elif isinstance(editor, QSpinBox):
            editor.setValue(int(value))
        elif isinstance(editor, QComboBox):
            editor.setCurrentText(str(value))
        else:
            editor.setText(field.to_text(value))

    def mark(self, name: str | None) -> None:
        """Outline the option `name` as wrong, and no other."""
        for other, editor in self.editors.items():
            editor.setStyleSheet("border: 1px solid #d55e00;" if other == name else "")
        if name in self.fields and self.fields[name].advanced:
            self.more.expand(animate=False)
