"""The exposures of this project, by model."""

from __future__ import annotations

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import models

from ..protocol.errors import NotExposed
from .checking import check_exposure
from .exposure import Exposure

_exposures: dict[type[models.Model], Exposure] = {}
_are_checked = False


def register(exposure: Exposure, *, anew: bool = False) -> None:
    """Take *exposure*; raise ImproperlyConfigured if its model has one already, unless *anew*."""
    global _are_checked
    if exposure.model in _exposures and not anew:
        raise ImproperlyConfigured(f"{exposure.model._meta.label} is exposed twice")
    _exposures[exposure.model] = exposure
    _are_checked = False


def unregister(model: type[models.Model]) -> None:
    """Expose *model* no longer."""
    _exposures.pop(model, None)


def problems() -> list[str]:
    """Return what is wrong in the exposures, one text for each that is not right."""
    found = []
    for each in _exposures.values():
        try:
            check_exposure(each, _exposures)
        except ImproperlyConfigured as error:
            found.append(str(error))
    return found


def exposures() -> tuple[Exposure, ...]:
    """Return all exposures, checked; raise ImproperlyConfigured."""
    global _are_checked
    if not _are_checked:
        for each in _exposures.values():
            check_exposure(each, _exposures)
        _are_checked = True
    return tuple(_exposures.values())


def exposure_of(model: type[models.Model] | str) -> Exposure:
    """Return the exposure of a model, which may be named "app.Model"; raise NotExposed."""
    exposures()
    label = model if isinstance(model, str) else model._meta.label
    try:
        return _exposures[apps.get_model(model) if isinstance(model, str) else model]
    except (LookupError, ValueError):
        # The same words whether the model is not exposed or does not exist.
        raise NotExposed(f"there is no model {label} here") from None
