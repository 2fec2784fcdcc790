from collections.abc import Iterator, Mapping
from typing import Any

from django import forms
from django.forms import BoundField

from proj.waiter.models import Customer, Dish


class OrderForm(forms.Form):
    """The menu as a form: for whom, and a number of portions for each dish."""

    customer = forms.CharField(
        label="Guest or table",
        max_length=Customer._meta.get_field("name").max_length,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )

    def __init__(self, dishes: list[Dish], data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data)
        self.dishes = dishes
        for dish in dishes:
            # The kitchen alone knows what is left when the order comes there.
            self.fields[f"dish-{dish.pk}"] = forms.IntegerField(
                label=f"Portions of {dish.name}",
                min_value=0,
                required=False,
                widget=forms.NumberInput(
                    attrs={"max": dish.stock, "placeholder": 0, "inputmode": "numeric"}
                ),
            )

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors and not self.quantities:
            raise forms.ValidationError("Choose at least one dish.")
        return cleaned

    @property
    def quantities(self) -> dict[int, int]:
        """The number of portions for each dish that was chosen."""
        chosen = {dish.pk: self.cleaned_data.get(f"dish-{dish.pk}") for dish in self.dishes}
        return {pk: quantity for pk, quantity in chosen.items() if quantity}

    def courses(self) -> Iterator[tuple[str, list[tuple[Dish, BoundField]]]]:
        """Yield each course of the menu with its dishes and their fields."""
        for course in Dish.Course:
            if dishes := [dish for dish in self.dishes if dish.course == course]:
                yield course.label, [(dish, self[f"dish-{dish.pk}"]) for dish in dishes]
